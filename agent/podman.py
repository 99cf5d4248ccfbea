"""podman, as far as a node needs it: it fetches an image and hands out its file system.

It runs nothing. What it stores lies in a folder of ours, for as long as that takes. The owner's
own logins to registries are not used: what strangers name is fetched as anybody would.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

import msgspec
from msgspec import Struct

_SAID: Final = 600


class PodmanError(RuntimeError):
    """What podman said when it gave up."""


class Described(Struct, frozen=True):
    """An image's own words."""

    os: str
    architecture: str
    env: list[str]


def why_not() -> str:
    """Why no images are fetched on this machine; "" if they can be."""
    if not shutil.which("podman"):
        return "podman is not installed (apt install podman)"
    if os.geteuid() != 0:
        return "the agent does not run as root: podman without root was not tried"
    return ""


class Podman:
    """One use of it, within `with`, its storage in `folder`; raises PodmanError, and OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._logins = folder / "auth.json"
        # It takes no path of more than 50 characters for what it notes of a run.
        self._notes = tempfile.TemporaryDirectory(prefix="gl-", ignore_cleanup_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._notes.cleanup()

    async def pull(self, reference: str) -> str:
        """Fetches an image for this machine's kind; its id. Every byte is held against the digest
        that the reference names."""
        self._logins.write_text("{}")
        said = await self._run("pull", "--quiet", "--authfile", str(self._logins), reference)
        return said.decode().strip().splitlines()[-1]

    async def describe(self, image: str) -> Described:
        """What it says of itself."""
        form = (
            '{"os":{{json .Os}},"architecture":{{json .Architecture}},"env":{{json .Config.Env}}}'
        )
        said = await self._run("image", "inspect", "--format", form, image)
        try:
            found = msgspec.json.decode(said, type=Mapping[str, str | list[str] | None])
            return msgspec.convert({**found, "env": found["env"] or []}, Described)
        except (msgspec.DecodeError, msgspec.ValidationError, KeyError) as error:
            raise PodmanError(f"it describes itself strangely: {error}") from None

    async def export(self, image: str, archive: Path) -> None:
        """Its whole file system, all layers as one, into a tar archive."""
        # A container needs a command to be made, though it is never started.
        said = await self._run("create", "--network", "none", image, "true")
        await self._run("export", "--output", str(archive), said.decode().strip().splitlines()[-1])

    async def _run(self, *words: str) -> bytes:
        places = {"root": str(self._folder / "root"), "runroot": self._notes.name}
        process = await asyncio.create_subprocess_exec(
            # Its mounts are seen by nobody else, and go when it goes.
            *("unshare", "--mount", "--propagation", "private", "podman"),
            *(word for name, path in places.items() for word in (f"--{name}", path)),
            *("--log-level", "error", "--events-backend", "none", *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            found, said = await process.communicate()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if process.returncode:
            raise PodmanError(" ".join(said.decode(errors="replace").split())[-_SAID:])
        return found
