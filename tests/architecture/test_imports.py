"""Imports point down (DESIGN: the house), and every module has its place in that order."""

import subprocess
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("buyers", "marketplace", "scheduler", "suppliers")
# What stands outside the order: Django's own plumbing, and the parts with contracts of their own.
OUTSIDE = {"apps", "settings", "migrations", "management", "templatetags", "devstack", "sdk"}


def test_every_import_contract_holds():
    lint = Path(sysconfig.get_path("scripts"), "lint-imports")
    done = subprocess.run([lint, "--no-logo"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_has_a_layer():
    homeless = sorted(
        module
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if not OUTSIDE & set((module := _module(path)).split("."))
        and path.stat().st_size > 0
        and not any(module == layer or module.startswith(f"{layer}.") for layer in _layers())
    )
    assert not homeless, f"name their layer in pyproject.toml, [tool.importlinter]: {homeless}"


def test_packages_that_pure_parts_lie_in_import_nothing():
    for package in (*PACKAGES, "agent", "marketplace/devstack"):
        assert (ROOT / package / "__init__.py").read_text() == "", package


def _layers() -> set[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(c for c in settings["contracts"] if c["type"] == "layers")["layers"]
    return {
        name.strip(" ()\n")
        for layer in layers
        for part in layer.split("|")
        for name in part.split(":")
    }


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")
