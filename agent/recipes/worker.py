"""One training process of a gang, started by Ray Train: it makes the recipe believe it is alone.

Nothing of a restart shows in the recipe: it finds the newest checkpoint to resume from, as on a
new lease, and its share of rows by its rank.
"""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist

from agent.recipes import notes
from agent.recipes.catalog import Exit
from agent.recipes.job import SETTINGS, Job, RecipeError, Stopped, load
from agent.recipes.notes import Verdict
from agent.recipes.world import Lost

_RESTORED: Final = Path("/job/restored")
_CHUNK: Final = 32 * 2**20
_CHECKPOINT: Final = "checkpoint-"


def work(config: Mapping[str, Any]) -> None:
    """What Ray Train runs in each process; also after a restart, with fewer of them perhaps."""
    # What torch reads when it is imported comes from the process that started Ray.
    os.environ.update(SETTINGS)
    job = load(Path(config["job"]))
    ended = _order_ranks(config["first"])
    if ended is not None:
        notes.leave(ended)
        return
    notes.saved(is_so=False)
    _share_checkpoint(Path(job.output))
    try:
        _run(job)
        if _is_first():
            notes.leave(Verdict(Exit.DONE))
    except Stopped:
        notes.leave(Verdict(Exit.STOPPED))
    except RecipeError as error:
        notes.leave(Verdict(int(error.code), str(error)))
    except Lost:
        if notes.Asked().asked:
            notes.leave(Verdict(Exit.STOPPED))
            return
        notes.saved(is_so=True)
        raise  # Ray begins anew with those who are left


def _run(job: Job) -> None:
    from agent.recipes import ladder

    ladder.climb(job, notes.Asked(), notes.say if _is_first() else _keep_quiet)


def _is_first() -> bool:
    """Whether it is us who writes."""
    return dist.get_rank() == 0


def _keep_quiet(line: str) -> None:
    """Every rank says the same."""


def _order_ranks(first: str) -> Verdict | None:
    """Makes rank 0 one on the gang's first node, whose output is uploaded; Ray puts it anywhere.

    Returns how the recipe has ended already, if it has on any rank: some had left when Ray began
    anew for the sake of the others.
    """
    import ray

    address = ray.util.get_node_ip_address()
    own = (address != first, address, int(os.environ["LOCAL_RANK"]), _free_port())
    verdict = notes.verdict() if notes.has_verdict() else None
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (own, verdict and (verdict.code, verdict.message)))
    said = [one for _, one in found if one is not None]
    if said:
        return Verdict(*said[0])
    order = sorted(place for place, _ in found)
    rank = order.index(own)
    if order != [place for place, _ in found]:
        backend, timeout = dist.get_backend(), _timeout()
        dist.destroy_process_group()
        meeting = f"tcp://{first}:{order[0][3]}"
        dist.init_process_group(
            backend, init_method=meeting, rank=rank, world_size=len(order), timeout=timeout
        )
    os.environ.update(
        RANK=str(rank),
        NODE_RANK=str(sorted({place[:2] for place in order}).index(own[:2])),
    )
    return None


def _timeout() -> Any:
    from torch.distributed.distributed_c10d import _get_default_group

    return _get_default_group()._get_backend(torch.device("cpu")).options._timeout


def _free_port() -> int:
    with socket.socket() as channel:
        channel.bind(("", 0))
        port: int = channel.getsockname()[1]
        return port


def _share_checkpoint(output: Path) -> None:
    """Hands the first rank's newest checkpoint of this lease to all nodes, and names it as the
    one to resume from. Without any, that of the lease's start stays."""
    newest = _newest(output) if _is_first() else None
    told = [newest.name if newest else None]
    dist.broadcast_object_list(told)
    if told[0] is None:
        return
    folder = output / told[0]
    group = dist.new_group(backend="gloo")
    receives = not folder.is_dir() and os.environ["LOCAL_RANK"] == "0"
    if not folder.is_dir():
        folder = _RESTORED / told[0]
    _broadcast(newest, folder if receives else None, group)
    os.environ["GRIDLOOM_RESUME_FROM"] = str(folder)


def _newest(output: Path) -> Path | None:
    steps = {
        int(path.name.removeprefix(_CHECKPOINT)): path
        for path in output.glob(f"{_CHECKPOINT}*")
        if path.name.removeprefix(_CHECKPOINT).isdigit()
    }
    return steps[max(steps)] if steps else None


def _broadcast(source: Path | None, target: Path | None, group: Any) -> None:
    """A folder's files from the first rank to those with a `target`, chunk by chunk."""
    listed: list[Any] = [None]
    if source is not None:
        paths = sorted(path for path in source.rglob("*") if path.is_file())
        listed = [[(str(path.relative_to(source)), path.stat().st_size) for path in paths]]
    dist.broadcast_object_list(listed, group=group)
    for name, size in listed[0]:
        if target is not None:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
        place = source / name if source is not None else target and target / name
        with open(place or os.devnull, "rb" if source is not None else "wb") as file:
            for begin in range(0, size, _CHUNK):
                length = min(_CHUNK, size - begin)
                data = torch.empty(length, dtype=torch.uint8)
                if source is not None:
                    data = torch.frombuffer(bytearray(file.read(length)), dtype=torch.uint8)
                dist.broadcast(data, src=0, group=group)
                if source is None:
                    file.write(data.numpy().tobytes())
    dist.barrier(group=group)
