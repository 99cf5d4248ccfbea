"""Builds a job's own environment, inside a sandbox that reaches the package index alone.

`python -I build.py UV LOCK ENVIRONMENT FAMILY`, run by the node's training environment: a fresh
virtual environment at ENVIRONMENT, with exactly the wheels of LOCK, each found right by its
SHA-256; nothing is built from source, and the new environment's `python` is never started once
they are there (it would run their `.pth` files), so no code of a package runs here. Packages
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

_COMPILERS = 8


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
                *("--only-binary", ":all:", "--no-deps", "-r", lock),
            ]
        )
        if done.returncode:
            return done.returncode
    site = _site(environment)
    _compile(base, site)
    if family:
        _link(re.compile(family), Path(site))
    shutil.rmtree(os.environ["UV_CACHE_DIR"], ignore_errors=True)
    return 0


def _site(environment: str) -> str:
    bases = {"base": environment, "platbase": environment}
    return sysconfig.get_path("purelib", "posix_prefix", bases)


def _compile(base: str, site: str) -> None:
    """Read-only where it is used, it could be compiled at no later time. What does not compile is
    left as it is: parts of packages that are for another Python."""
    at_once = str(min(_COMPILERS, len(os.sched_getaffinity(0))))
    subprocess.run([base, "-I", "-S", "-m", "compileall", "-qq", "-j", at_once, site], check=False)


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
