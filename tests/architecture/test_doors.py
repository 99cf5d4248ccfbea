"""stripe, boto3 and redis come in by one door each, so that one module knows their ways."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("agent", "buyers", "marketplace", "scheduler", "suppliers")


@pytest.mark.parametrize(
    ("library", "door"),
    [
        ("stripe", "marketplace/payments/gateway.py"),
        ("boto3", "marketplace/storage.py"),
        ("botocore", "marketplace/storage.py"),
        ("redis", "marketplace/telemetry.py"),
    ],
)
def test_a_library_has_one_door(library, door):
    users = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if library in _imported(path)
    }
    assert users == {door}


def _imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}
