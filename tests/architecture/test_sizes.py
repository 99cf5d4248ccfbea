"""Short modules and short functions, so that each can be read in one go (STYLE: rule 4)."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("agent", "buyers", "marketplace", "scheduler", "suppliers")
MODULE_LINES = 400
FUNCTION_LINES = 40
POSITIONAL = 5


def test_modules_fit_in_400_lines():
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in (*PACKAGES, "tests", "benchmarks")
        for path in _modules(folder)
        if (lines := len(path.read_text().splitlines())) > MODULE_LINES
    }
    assert not long


def test_functions_fit_in_40_lines():
    long = {
        name: lines
        for name, node in _functions()
        if (lines := node.end_lineno - node.lineno + 1) > FUNCTION_LINES
    }
    assert not long


def test_functions_take_at_most_five_positional_parameters():
    """But for compiled loops, which take their arrays one by one: numba counts what it takes from
    a tuple each time, and knows no parameters by name alone."""
    many = {
        name: [argument.arg for argument in positional]
        for name, node in _functions()
        if len(positional := _positional(node)) > POSITIONAL and not _is_compiled(node)
    }
    assert not many


def _functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for package in PACKAGES:
        for path in _modules(package):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def _is_compiled(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    called = [one.func for one in node.decorator_list if isinstance(one, ast.Call)]
    return any(isinstance(one, ast.Name) and one.id == "njit" for one in called)


def _positional(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    found = [*node.args.posonlyargs, *node.args.args]
    return found[1:] if found and found[0].arg in ("self", "cls") else found


def _modules(folder: str) -> Iterator[Path]:
    return (
        path for path in sorted((ROOT / folder).rglob("*.py")) if "migrations" not in path.parts
    )
