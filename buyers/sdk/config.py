"""Where the command line finds the market and its key: the environment, else a private file."""

import os
from pathlib import Path

import msgspec
from msgspec import Struct

from buyers.sdk.errors import GridloomError


class Access(Struct, frozen=True):
    """A market's address and an API key for it."""

    url: str
    key: str


def path() -> Path:
    """The file, by XDG's rules."""
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "gridloom" / "config.json"


def load() -> Access:
    """GRIDLOOM_URL and GRIDLOOM_KEY, each else from the file; raises GridloomError."""
    url, key = os.environ.get("GRIDLOOM_URL", ""), os.environ.get("GRIDLOOM_KEY", "")
    if not (url and key):
        try:
            kept = msgspec.json.decode(path().read_bytes(), type=Access)
        except FileNotFoundError:
            raise GridloomError(
                "no market is known yet: run `gridloom login`, or set GRIDLOOM_URL and GRIDLOOM_KEY"
            ) from None
        except (OSError, msgspec.DecodeError) as error:
            raise GridloomError(f"{path()} can't be read ({error}); run `gridloom login`") from None
        url, key = url or kept.url, key or kept.key
    return Access(url, key)


def address() -> str:
    """Where the market is, for what needs no key; raises GridloomError."""
    return os.environ.get("GRIDLOOM_URL", "") or load().url


def save(access: Access) -> Path:
    """Keeps it where only this user can read it."""
    target = path()
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    # The mode from the beginning: at no moment may another user read the key.
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(access))
    beside.replace(target)
    return target
