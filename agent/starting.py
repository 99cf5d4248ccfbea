"""From a wish to an order: the spec, whether this machine can run it, and its inputs."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from agent import cache, keeper, orders
from agent import order as files
from agent import record as records
from agent.api import Refused
from agent.cache import BadInput, NoRoom, Shelf
from agent.making import NotMade
from agent.order import Within
from agent.orders import SpecRefused
from agent.patience import all_of
from agent.protocol import AssignmentSpec
from agent.record import Record
from agent.sandbox import workspace
from agent.tools import Tools
from agent.transfer import Progress, Source

START_BY_S: Final = 120.0
"""How long a start may take until the spec says it."""
_SECRET_BYTES: Final = 256 * 1024
"""Of all secrets of a job: each of its log's reads is searched for all of them."""
_BUILT_WITHIN: Final = 0.8
"""Share of the time for a start by whose end its environment must be built."""


class NotStarted(Exception):
    """It can't run here; `why` is the word for the market, the message says more."""

    def __init__(self, why: str, message: str) -> None:
        super().__init__(message)
        self.why = why


def known_spec(folder: Path, record: Record) -> AssignmentSpec | None:
    """The spec that was fetched before; None if it wasn't, or the disk has lost it."""
    try:
        return orders.parse((folder / records.SPEC).read_bytes(), record)
    except (FileNotFoundError, SpecRefused):
        return None


async def fetch_spec(folder: Path, record: Record, tools: Tools) -> AssignmentSpec:
    """Asks for the spec and keeps it; raises NotStarted."""
    try:
        data = await tools.api.spec(record.id)
        spec = orders.parse(data, record)
    except (Refused, SpecRefused) as error:
        raise NotStarted("refused", str(error)) from None
    files.replace(folder / records.SPEC, data)
    return spec


async def prepare(
    folder: Path, spec: AssignmentSpec, tools: Tools, say: Callable[[str], None], accepted_ms: int
) -> None:
    """Checks, fetches the inputs, makes what it runs in and writes the order; raises NotStarted,
    OSError. `accepted_ms`: since when it is to start, by the boot clock."""
    try:
        orders.check(spec, tools.machine, tools.taken(spec.assignment))
        await _fetch_inputs(folder, spec, tools, say)
        made_by_ms = accepted_ms + round(_BUILT_WITHIN * spec.start_timeout_s * 1000)
        within = await _made(spec, tools, say, made_by_ms)
        await asyncio.to_thread(orders.write, folder, spec, tools.machine, within)
    except SpecRefused as refusal:
        raise NotStarted("refused", str(refusal)) from None
    except Refused as no:
        # Something is to be had no more, if the market can say so much: no node's fault.
        why = "refused" if no.code == "conflict" else "input"
        raise NotStarted(why, f"the market doesn't give its inputs out: {no}") from None
    except NotMade as error:
        raise NotStarted(error.why, str(error)) from None
    except BadInput as error:
        raise NotStarted("bad_input", str(error)) from None
    except NoRoom as error:
        raise NotStarted("input", str(error)) from None


async def _made(
    spec: AssignmentSpec, tools: Tools, say: Callable[[str], None], by_ms: int
) -> Within:
    """What the job brings to run in. Raises NotStarted when it takes too long: not the node's fault,
    if it could begin in time."""
    if spec.image is None and spec.packages is None:
        return None
    left_s = (by_ms - files.up_ms()) / 1000
    if left_s <= 0:
        raise NotStarted("start_failed", "too slow to start: no time is left for its environment")
    try:
        async with asyncio.timeout(left_s) as limit:
            if spec.image is not None:
                urls = _Urls(lambda: _layers(spec, tools))
                return await tools.images.get(spec.image, urls, say)
            assert spec.packages is not None
            return await tools.builds.get(spec.org, spec.packages, say)
    except TimeoutError:
        if not limit.expired():
            raise
        if spec.packages is None:  # its registry may be slow: another node may try
            words = f"its image took longer than {left_s:.0f} s to fetch and lay out"
            raise NotStarted("bad_input", words) from None
        words = f"its {spec.packages.count} packages took longer than {left_s:.0f} s to install"
        raise NotStarted("environment", words) from None


async def fetch_secrets(spec: AssignmentSpec, tools: Tools) -> dict[str, str]:
    """The values of the job's secrets, for memory only; raises NotStarted."""
    if not spec.secrets:
        return {}
    try:
        values = await tools.api.secrets(spec.assignment)
    except Refused as no:
        raise NotStarted("secret", f"its secrets are not given out here: {no}") from None
    if missing := sorted(set(spec.secrets) - set(values)):
        raise NotStarted("secret", f"the market gives out no secret {missing[0]}")
    size = sum(len(values[name].encode()) for name in spec.secrets)
    if size > _SECRET_BYTES:
        raise NotStarted("secret", f"its secrets have {size} bytes in all: give it shorter ones")
    return {name: values[name] for name in spec.secrets}


async def start(folder: Path, secrets: dict[str, str]) -> None:
    """Starts the keeper: it holds the job from here on, whatever becomes of us. Raises
    NotStarted.

    The secrets lie in a file for as long as the keeper takes to read it.
    """
    try:
        if secrets:
            files.write_secrets(folder, secrets)
        await asyncio.to_thread(keeper.start, folder)
    except files.OrderError as error:
        raise NotStarted("refused", str(error)) from None
    except (workspace.WorkspaceError, keeper.KeeperError) as error:
        raise NotStarted("start_failed", str(error)) from None
    finally:
        (folder / files.SECRETS).unlink(missing_ok=True)


async def _fetch_inputs(
    folder: Path, spec: AssignmentSpec, tools: Tools, say: Callable[[str], None]
) -> None:
    """All inputs into `inputs/<name>`, from the cache as far as it has them."""
    downloads, urls = tools.downloads, _Urls(lambda: _inputs(spec, tools))
    wanted = [
        (name, these, Shelf(downloads.root, spec.org, public))
        for name, these, public in orders.folders_of(spec)
    ]
    missing = sum(
        file.bytes for _, these, shelf in wanted for file in these if shelf.find(file) is None
    )
    await asyncio.to_thread(tools.shelves.make_room, missing + spec.disk_bytes)
    for name, these, shelf in wanted:
        progress = Progress(f"fetching {name}", sum(file.bytes for file in these), say)
        try:
            paths = await all_of(downloads.fetch(file, shelf, urls, progress.add) for file in these)
        except BadInput as error:
            if name != orders.RESUME or spec.resume is None:
                raise
            raise NotStarted(
                "checkpoint", f"the checkpoint of step {spec.resume.step} can't be read: {error}"
            ) from None
        found = {file.path: path for file, path in zip(these, paths, strict=True)}
        await asyncio.to_thread(cache.lay_out, found, these, folder / "inputs" / name)


async def _inputs(spec: AssignmentSpec, tools: Tools) -> dict[str, Source]:
    urls = await tools.api.inputs(spec.assignment)
    return {sha256: Source(url) for sha256, url in urls.items()}


async def _layers(spec: AssignmentSpec, tools: Tools) -> dict[str, Source]:
    found = await tools.api.layers(spec.assignment)
    return {
        sha256: Source(url, found.authorization, is_ours=False)
        for sha256, url in found.urls.items()
    }


class _Urls:
    """Where files are: asked for when the first is needed."""

    def __init__(self, ask: Callable[[], Awaitable[dict[str, Source]]]) -> None:
        self._ask = ask
        self._sources: dict[str, Source] = {}
        self._lock = asyncio.Lock()

    async def get(self, sha256: str) -> Source:
        """Raises BadInput if the market knows of no such file."""
        async with self._lock:
            if not self._sources:
                self._sources = await self._ask()
        if sha256 not in self._sources:
            raise BadInput(f"the market has no file with the SHA-256 {sha256}")
        return self._sources[sha256]

    async def renew(self, stale: Source) -> None:
        """One has run out: all of them have."""
        async with self._lock:
            if stale in self._sources.values():
                self._sources = {}
