"""Requirements made into exact wheels, by uv against the market's package index.

Wheels only: nothing of a package runs here, not even its build. uv sees a folder of its own, no
configuration but ours, and answers within a time.
"""

import os
import re
import subprocess
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import uv

from marketplace.core.errors import Invalid, Unavailable

_PLATFORM: Final = "x86_64-manylinux_2_28"
"""What nodes are: Linux on x86-64, with a libc of 2018 or later."""
# What of our own environment says how to get out.
_OUT: Final = tuple("SSL_CERT_FILE SSL_CERT_DIR HTTPS_PROXY HTTP_PROXY ALL_PROXY NO_PROXY "
                    "https_proxy http_proxy all_proxy no_proxy HOME XDG_CACHE_HOME".split())  # fmt: skip
_AWAY: Final = re.compile(
    "error sending request|Failed to fetch|dns error|Connection refused|timed out"
    "|Request failed|HTTP status (client error \\(40[13]|server error)"
)


@dataclass(frozen=True)
class Wheel:
    """One file to install."""

    name: str
    version: str
    sha256: str
    bytes: int
    """0 where the index doesn't tell."""
    host: str
    """Where it is fetched from, with its port if that is an unusual one."""


def resolve(
    requirements: Sequence[str],
    constraints: Sequence[str],
    *,
    python: str,
    index: str,
    within_s: float,
) -> list[Wheel]:
    """The wheels, sorted by name. Uses the network, for seconds: never in a transaction.

    Raises Invalid with uv's reason if they can't be had together or one has no wheel, Unavailable
    if the index doesn't answer.
    """
    if strange := next((x for x in (*requirements, *constraints) if not x.isprintable()), ""):
        # Constraints name what nodes say that they have: it must not become another line.
        raise Invalid(f"{strange[:80]!r} has control characters", field="script")
    with tempfile.TemporaryDirectory(prefix="gridloom-resolve-") as scratch:
        folder = Path(scratch)
        (folder / "requirements.in").write_text("\n".join(requirements) + "\n")
        (folder / "constraints.txt").write_text("\n".join(constraints) + "\n")
        command = [
            *(uv.find_uv_bin(), "pip", "compile", "requirements.in", "--quiet", "--no-config"),
            *("--constraints", "constraints.txt", "--only-binary", ":all:", "--no-sources"),
            *("--python-version", python, "--python-platform", _PLATFORM),
            *("--default-index", index, "--format", "pylock.toml", "-o", "pylock.toml"),
        ]
        done = _run(command, folder, within_s)
        if done.returncode != 0:
            raise _refusal(done.stderr)
        return _wheels(tomllib.loads((folder / "pylock.toml").read_text()))


def _run(command: Sequence[str], folder: Path, within_s: float) -> subprocess.CompletedProcess[str]:
    env = {name: os.environ[name] for name in _OUT if name in os.environ}
    try:
        return subprocess.run(
            command,
            cwd=folder,
            env={"PATH": os.defpath, "UV_PYTHON_DOWNLOADS": "never", **env},
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(
            "resolving its packages takes too long; pin more of their versions, or try again"
        ) from None


def host_of(url: str) -> str:
    """As a gate's list names it."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{host}:{parts.port}" if parts.port not in (None, 80, 443) else host


def _wheels(lock: dict[str, Any]) -> list[Wheel]:
    found = []
    for package in lock.get("packages", []):
        name, version = package["name"], package.get("version", "")
        wheels = package.get("wheels", [])
        if not wheels:
            raise Invalid(f"{name} {version} has no wheel for Linux", field="script")
        wheel = wheels[0]
        found.append(
            Wheel(
                name=name,
                version=version,
                sha256=wheel["hashes"]["sha256"],
                bytes=int(wheel.get("size", 0)),
                host=host_of(wheel["url"]),
            )
        )
    return sorted(found, key=lambda wheel: wheel.name)


def _refusal(said: str) -> Invalid | Unavailable:
    """uv's reason in a line or two, without its drawings."""
    words = " ".join(re.sub(r"[×╰├─▶│]", " ", said).split())
    words = re.sub(r"^No solution found when resolving dependencies:? *", "", words)
    if _AWAY.search(said):
        return Unavailable(f"the package index doesn't answer; try again later ({words[-300:]})")
    return Invalid(f"its packages can't be installed together: {words[:600]}", field="script")
