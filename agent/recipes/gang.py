"""A recipe on several nodes of a site: the process that the agent starts in each rank's sandbox.

1. The ranks find each other (`usher`): the first listens, the others take a seat.
2. They make a Ray cluster of their own, which only the lease's token opens: the first is its head.
3. The first lets Ray Train run the recipe in one process per GPU (`worker`), restarted by Ray from
   the newest checkpoint when one breaks.
4. It tells the others how to leave. Nothing of Ray is stopped: it ends with the sandbox.

A rank that is lost is done without while enough GPUs are left: Ray Train begins anew with those,
from what the first rank had learnt. If it can't be spared, all leave with `Exit.PEER_LOST`, and
the market goes on from the last checkpoint elsewhere.
"""

import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from agent.recipes import notes
from agent.recipes.catalog import Exit
from agent.recipes.job import Gang, Job, RecipeError, Stop, Stopped
from agent.recipes.notes import Verdict
from agent.recipes.usher import PeerLost, Seat, Usher, take_seat

_RAY_PORT: Final = 6379
_TEMPORARY: Final = "/tmp/ray"
_UP_S: Final = 90.0
_SAVING_S: Final = 20.0
_POLL_S: Final = 0.2
_RESTARTS: Final = 3
# Far above what a message between two ranks takes, far below what anybody waits for one that died.
_COLLECTIVE_S: Final = 60
_OBJECTS: Final = 100 * 2**20
_JOIN, _LEAVE = "join", "leave"

_ENVIRONMENT: Final = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # The elastic policy goes by a stale view of the cluster, and waits so long for a dead node's
    # place before it looks again. Processes may take longer to start: that is not counted here.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5",
    # Every 3 s, 5 s to answer, three times: less breaks busy machines, more waits for dead ones.
    "RAY_health_check_initial_delay_ms": "3000",
    "RAY_health_check_period_ms": "3000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    # The sandbox bounds memory; Ray would look at the whole machine's and kill for its sake.
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody drains nodes behind our back
    "RAY_enable_metrics_collection": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


def run(job: Job, path: Path, stop: Stop, tell: Callable[[str], None]) -> int:
    """This rank's part, to its end; the code to leave with. Raises Stopped, RecipeError."""
    gang = job.gang
    assert gang is not None, "called for gangs only"
    if shutil.which("ray") is None:
        raise RecipeError(
            Exit.PARAMETERS,
            "the training environment has no Ray, which jobs on several GPUs need: choose a node "
            "that has it (ray[train])",
        )
    os.environ.update(_ENVIRONMENT, RAY_AUTH_TOKEN=gang.token)
    notes.begin()
    if gang.rank and gang.is_elastic:
        # Only this node may be taken back: the first rank has all that it knows, and decides.
        stop.pass_on(lambda: _leave(Verdict(Exit.STOPPED, "this rank leaves, as asked")))
    else:
        stop.pass_on(notes.ask_to_stop)
    try:
        if gang.rank:
            return _attend(gang, stop)
        return _lead(gang, path, stop, tell)
    except PeerLost as error:
        raise RecipeError(Exit.PEER_LOST, str(error)) from None


def _lead(gang: Gang, path: Path, stop: Stop, tell: Callable[[str], None]) -> int:
    """The first rank's part."""
    first, others = gang.addresses[0], len(gang.addresses) - 1
    code = int(Exit.PEER_LOST)
    with ExitStack() as stack:
        usher = Usher(first, gang.token, lambda rank: _on_loss(rank, gang, usher, tell))
        stack.callback(lambda: usher.dismiss(f"{_LEAVE} {code}"))
        ray = _start_ray(gang, "--head", f"--port={_RAY_PORT}")
        _await_port(first, ray, stop)
        tell(f"waiting for {others} other ranks …")
        usher.gather(others, gang.gather_s, stop.check)
        usher.tell(_JOIN)
        threading.Thread(target=_watch_ray, args=(ray,), daemon=True).start()
        threading.Thread(target=_watch_stop, args=(stop, usher), daemon=True).start()
        threading.Thread(target=notes.repeat, args=(tell,), daemon=True).start()
        try:
            code = _train(gang, path, stop, tell)
        except RecipeError as error:
            code = int(error.code)
            raise
        except Stopped:
            code = int(Exit.STOPPED)
            raise
    return code


def _attend(gang: Gang, stop: Stop) -> int:
    """Any other rank's part: to be there, until the first says how to leave."""
    seat = take_seat(
        gang.addresses[0], gang.token, gang.rank, within_s=gang.gather_s, still_wanted=stop.check
    )
    code = _heard_code(seat.hear())
    if code is not None:
        return code
    ray = _start_ray(gang, f"--address={gang.addresses[0]}:{_RAY_PORT}")
    threading.Thread(target=_watch_ray, args=(ray,), daemon=True).start()
    return _last_word(seat)


def _last_word(seat: Seat) -> int:
    while True:
        code = _heard_code(seat.hear())
        if code is not None:
            return code


def _heard_code(line: str) -> int | None:
    word, _, rest = line.partition(" ")
    return int(rest) if word == _LEAVE and rest.isdigit() else None


def _start_ray(gang: Gang, *how: str) -> subprocess.Popen[bytes]:
    """This node's part of the cluster; ends when one of its processes does."""
    gpus = gang.gpus[gang.rank]
    with_gpus = [f"--num-gpus={gpus}"] if _has_gpus() else ["--num-gpus=0"]
    with open(notes.RAY_LOG, "wb") as log:
        return subprocess.Popen(
            [
                *("ray", "start", "--block", *how, *with_gpus, f"--num-cpus={gpus}"),
                f"--node-ip-address={gang.addresses[gang.rank]}",
                f"--object-store-memory={_OBJECTS}",
                f"--temp-dir={_TEMPORARY}",
                *("--disable-usage-stats", "--include-log-monitor=false"),
                *(("--include-dashboard=false",) if gang.rank == 0 else ()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its end takes its group along, and that must not be us
        )


def _has_gpus() -> bool:
    return bool(os.environ.get("CUDA_VISIBLE_DEVICES"))


def _await_port(address: str, ray: subprocess.Popen[bytes], stop: Stop) -> None:
    deadline = time.monotonic() + _UP_S
    while True:
        stop.check()
        try:
            socket.create_connection((address, _RAY_PORT), timeout=1).close()
        except OSError:
            if ray.poll() is not None or time.monotonic() > deadline:
                raise RecipeError(Exit.PEER_LOST, f"Ray does not start: {_ray_says()}") from None
            time.sleep(_POLL_S)
        else:
            return


def _ray_says() -> str:
    lines = Path(notes.RAY_LOG).read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it says nothing"


def _watch_ray(ray: subprocess.Popen[bytes]) -> None:
    """In a thread: without its Ray node a rank is lost, whether it knows or not."""
    ray.wait()
    _leave(Verdict(Exit.PEER_LOST, f"this rank's Ray has ended: {_ray_says()}"))


def _watch_stop(stop: Stop, usher: Usher) -> None:
    """In a thread: while Ray begins anew nobody trains who could answer a SIGTERM, and all that
    was learnt is saved."""
    while not (stop.asked and notes.is_saved()):
        time.sleep(_POLL_S)
    usher.dismiss(f"{_LEAVE} {Exit.STOPPED:d}")
    _leave(Verdict(Exit.STOPPED, "stopped before the end, as asked; resumable"))


def _on_loss(rank: int, gang: Gang, usher: Usher, tell: Callable[[str], None]) -> None:
    """In a thread: a rank is gone. What the first one holds is whole, so it may save it first."""
    left = gang.gpus[0] + sum(gang.gpus[other] for other in usher.present())
    if left >= gang.gpus_min:
        tell(f"rank {rank} is gone; going on with {left} of {sum(gang.gpus)} GPUs …")
        return
    deadline = time.monotonic() + _SAVING_S
    while not (notes.is_saved() or notes.has_verdict()) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    verdict = notes.verdict(Exit.PEER_LOST, f"rank {rank} is gone; the gang can't do without it")
    usher.dismiss(f"{_LEAVE} {verdict.code}")
    _leave(verdict)


def _leave(verdict: Verdict) -> None:
    """Ray's own threads can't be interrupted; the sandbox's first process ends all of them."""
    sys.stderr.write(f"{verdict.message}\n")
    sys.stderr.flush()
    os._exit(verdict.code)


def _train(gang: Gang, path: Path, stop: Stop, tell: Callable[[str], None]) -> int:
    """Lets Ray Train do it; the code that the recipe left with."""
    import ray
    from ray.train import TrainingFailedError

    ray.init(
        f"{gang.addresses[0]}:{_RAY_PORT}",
        _node_ip_address=gang.addresses[0],
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    stop.install()  # Ray has put its own in its place
    _await_nodes(len(gang.addresses), stop)
    tell(f"{len(gang.addresses)} nodes train together")
    try:
        _trainer(gang, path).fit()
    except TrainingFailedError as error:
        raise RecipeError(Exit.FAILED, f"training failed on a rank: {error}") from error
    verdict = notes.verdict(Exit.FAILED, "training ended without a word")
    if verdict.code == Exit.STOPPED:
        raise Stopped
    if verdict.code:
        raise RecipeError(Exit(verdict.code), verdict.message)
    return Exit.DONE


def _trainer(gang: Gang, path: Path) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from agent.recipes import worker

    return TorchTrainer(
        worker.work,
        train_loop_config={"job": str(path), "first": gang.addresses[0]},
        torch_config=TorchConfig(
            backend="nccl" if _has_gpus() else "gloo", timeout_s=_COLLECTIVE_S
        ),
        scaling_config=ScalingConfig(
            num_workers=_workers(gang),  # type: ignore[arg-type]  # its stub knows no pairs
            use_gpu=_has_gpus(),
        ),
        run_config=RunConfig(
            name="job",
            storage_path=f"{notes.FOLDER}/train",
            failure_config=FailureConfig(max_failures=_RESTARTS * len(gang.gpus)),
        ),
    )


def _workers(gang: Gang) -> int | tuple[int, int]:
    most = sum(gang.gpus)
    return (gang.gpus_min, most) if gang.is_elastic else most


def _await_nodes(wanted: int, stop: Stop) -> None:
    import ray

    deadline = time.monotonic() + _UP_S
    while sum(node["Alive"] for node in ray.nodes()) < wanted:
        stop.check()
        if time.monotonic() > deadline:
            raise PeerLost("a rank's Ray did not join the cluster in time")
        time.sleep(_POLL_S)
