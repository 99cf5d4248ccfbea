"""Builds a job's own environment, inside a sandbox that reaches the package index alone.

`python -I build.py UV LOCK ENVIRONMENT FAMILY`, run by the node's training environment: a fresh
virtual environment at ENVIRONMENT, with exactly the wheels of LOCK, each found right by its
SHA-256; nothing is built from source, so no code of a package runs at its installation. Packages
of this interpreter's environment whose name matches FAMILY (torch and what belongs to its build)
are linked into it, where LOCK leaves them to the node. Standard library only.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path


def main(uv: str, lock: str, environment: str, family: str) -> int:
    """0 once it is there; what went wrong stands on standard error."""
    os.umask(0o022)
    base = getattr(sys, "_base_executable", sys.executable)
    made = subprocess.run(
        [uv, "venv", "--quiet", "--relocatable", "--clear", "--python", base, environment]
    )
    if made.returncode:
        return made.returncode
    python = f"{environment}/bin/python"
    if any("==" in line for line in Path(lock).read_text().splitlines() if line[:1] != "#"):
        done = subprocess.run(
            [
                *(uv, "pip", "install", "--quiet", "--python", python, "--require-hashes"),
                *("--only-binary", ":all:", "--no-deps", "--compile-bytecode", "-r", lock),
            ]
        )
        if done.returncode:
            return done.returncode
    if family:
        _link(re.compile(family), Path(_site(python)))
    shutil.rmtree(os.environ["UV_CACHE_DIR"], ignore_errors=True)
    return 0


def _site(python: str) -> str:
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    done = subprocess.run([python, "-I", "-c", asked], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _link(family: re.Pattern[str], into: Path) -> None:
    ours = Path(sysconfig.get_path("purelib"))
    for one in metadata.distributions():
        if not family.fullmatch(re.sub(r"[-_.]+", "-", one.metadata["Name"] or "").lower()):
            continue
        tops = {Path(file).parts[0] for file in one.files or ()}
        for top in sorted(tops - {"..", "__pycache__"}):
            _place(ours / top, into / top)


def _place(source: Path, target: Path) -> None:
    """A link; where a folder is there already (a namespace, like nvidia/), links inside it."""
    if target.is_dir() and not target.is_symlink():
        for child in sorted(source.iterdir()):
            _place(child, target / child.name)
    elif source.exists() and not os.path.lexists(target):
        target.symlink_to(source)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
