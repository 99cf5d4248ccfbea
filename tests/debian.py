"""What some tests need of the system, found or installed: they fail, rather than skip, without it.

A Debian machine of root's (CI, a container) gets the package by apt, once; anybody else is told
which package to install.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path


def chromium() -> str:
    """Path of a Chromium: $CHROMIUM, the PATH's, or Debian's own, installed now."""
    named = os.environ.get("CHROMIUM")
    found = named or _found("chromium", "chromium-browser", "google-chrome")
    return found or _installed("chromium")


def _found(*names: str) -> str | None:
    return next((path for name in names if (path := shutil.which(name))), None)


def _installed(package: str) -> str:
    apt = shutil.which("apt-get")
    assert os.getuid() == 0, f"install the Debian package {package}, or run as root"
    assert apt, f"install {package}: this is no Debian machine, where the tests could do it"
    # Several processes run the suite; the second finds what the first has installed.
    with open(Path(tempfile.gettempdir(), f"gridloom-apt-{os.getuid()}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shutil.which(package):
            quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            for words in (["update", "-qq"], ["install", "-y", "-qq", package]):
                subprocess.run([apt, *words], env=quiet, check=True, capture_output=True)
    path = shutil.which(package)
    assert path, f"apt installed {package}, and it isn't on the PATH"
    return path
