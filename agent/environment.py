"""The training environment that a node offers: its interpreter, its packages, its lock."""

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from agent import protocol

# What training scripts ask for; the lock covers everything that is installed.
_NAMED: Final = frozenset(
    "accelerate bitsandbytes datasets deepspeed flash-attn gguf numpy peft ray safetensors scipy "
    "sentencepiece tokenizers torch torchft torchvision transformers triton trl vllm xformers".split()
)
_WITHIN_S: Final = 60

# Runs in the environment itself, which may have nothing but Python.
_LOOK: Final = """
import json, platform, re, sys
from importlib.metadata import distributions
found = {}
for one in distributions():
    name = one.metadata["Name"]
    if name:
        found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), one.version)
print(json.dumps({"python": platform.python_version(), "prefix": sys.prefix,
                  "base_prefix": sys.base_prefix, "packages": found}))
"""


class EnvironmentMissing(RuntimeError):
    """The training environment can't be looked into; says why."""


@dataclass(frozen=True)
class Training:
    """An environment: what the market is told, and what the sandbox binds."""

    python: Path
    folders: tuple[str, ...]
    """Its prefix and its base Python's."""
    shown: protocol.Environment


class _Found(Struct):
    python: str
    prefix: str
    base_prefix: str
    packages: dict[str, str]


def look(python: str = "") -> Training:
    """Asks an interpreter (empty: our own) what it has installed; takes some 0.3 s.

    Raises EnvironmentMissing.
    """
    path = python or sys.executable
    try:
        # -I: neither our PYTHONPATH nor anybody's home counts, as it won't in the sandbox.
        done = subprocess.run(
            [path, "-I", "-c", _LOOK], capture_output=True, timeout=_WITHIN_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentMissing(
            f"the training environment's {path} does not run: {error}"
        ) from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it says nothing"]
        raise EnvironmentMissing(f"the training environment's {path} fails: {said[-1]}")
    found = msgspec.json.decode(done.stdout, type=_Found)
    return Training(
        python=Path(path),
        folders=tuple(dict.fromkeys((found.prefix, found.base_prefix))),
        shown=protocol.Environment(
            python=found.python,
            packages={name: v for name, v in sorted(found.packages.items()) if name in _NAMED},
            lock=lock(found.packages),
        ),
    )


def lock(packages: dict[str, str]) -> str:
    """One hash over all that is installed: SHA-256 of the sorted lines `name==version`."""
    lines = sorted(f"{name}=={version}" for name, version in packages.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
