"""From what the market wants run to how this machine runs it: checked, then written down."""

import re
import secrets
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from agent import images, packages
from agent import order as files
from agent.hardware import Machine
from agent.order import Image, KeeperOrder, Limits, Network, Peer, Within
from agent.protocol import (
    AssignmentSpec,
    File,
    Gang,
    Malformed,
    decode,
    image_room,
    paths,
    sha256_hex,
)
from agent.recipes import catalog
from agent.record import Record
from agent.sandbox import outputs, reach, workspace
from agent.sandbox.network import CARD

RESUME: Final = "resume"
OUTPUT: Final = "output"
SCRIPT: Final = "script"
WORK: Final = "work"
"""A script's working directory: its project's copy, where it may write."""
METRICS: Final = "metrics.jsonl"
_INSIDE: Final = "/job"
_SECRET: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_MASTER_PORT: Final = 29_500
# Ray's dozen processes have threads by the machine's cores, however few of them they may use.
_ALONE_PIDS: Final = 1024
_GANG_PIDS: Final = 8192


class SpecRefused(RuntimeError):
    """This machine can't or mustn't run that; says why."""


def parse(data: bytes, record: Record) -> AssignmentSpec:
    """The spec that was announced; raises SpecRefused if these bytes are another one's."""
    try:
        spec = decode(data, AssignmentSpec)
    except Malformed as error:
        raise SpecRefused(f"its spec is of another protocol: {error}") from None
    if sha256_hex(data) != record.spec:
        raise SpecRefused("its spec is not the one that was announced: the SHA-256 differs")
    if (spec.assignment, spec.epoch) != (record.id, record.epoch):
        raise SpecRefused("its spec is another assignment's")
    return spec


def check(spec: AssignmentSpec, machine: Machine, taken: Collection[str]) -> None:
    """Raises SpecRefused unless this machine can run it as ordered. `taken`: devices in use."""
    try:
        catalog.validate(spec.recipe, spec.parameters)
        needed = [one.name for one in catalog.inputs(spec.recipe) if one.required]
    except catalog.ParameterError as error:
        raise SpecRefused(str(error)) from None
    given = [one.name for one in spec.inputs]
    if why := _unlike(spec, machine):
        pass
    elif why_not := _unfit_for_gang(spec, machine):
        why = why_not
    elif machine.rung is None:
        why = "no sandbox holds on this node"
    elif spec.egress and not machine.network.egress:
        why = "the owner lets jobs reach nothing outside (network.egress in config.json)"
    elif missing := [name for name in needed if name not in given]:
        why = f"the input {missing[0]!r} is missing"
    else:
        why = _strange(spec) or _misfit(spec, machine, taken)
    if why:
        raise SpecRefused(why)


def write(folder: Path, spec: AssignmentSpec, machine: Machine, within: Within = None) -> None:
    """Makes the work folder's first files and `order.json`, for `agent.keeper.start`.
    `within`: what the job brings to run in, as it was made.

    The inputs already lie in `inputs/`. Whatever an attempt that never ran has left is removed.
    """
    assert machine.rung is not None, "check refuses it"
    workspace.release(folder)
    for name in ("job", "job.files"):
        outputs.clean(folder / name)
    (folder / workspace.IMAGE).unlink(missing_ok=True)
    output = folder / "job" / OUTPUT
    output.mkdir(parents=True)
    output.chmod(0o777)  # the job's uid may be of its own; only that one reaches the work folder
    (folder / "job" / "job.json").write_bytes(msgspec.json.encode(_told(spec)))
    if spec.recipe == SCRIPT:
        _lay_out_work(folder, spec)
    files.write(folder / files.ORDER, _order(folder, spec, machine, within))


def folders_of(spec: AssignmentSpec) -> list[tuple[str, list[File], bool]]:
    """What to fetch: (name under /job/inputs, its files, whether all orgs may share them)."""
    found = [(one.name, one.files, one.public) for one in spec.inputs]
    if spec.resume is not None:
        found.append((RESUME, spec.resume.files, False))
    return found


def _unlike(spec: AssignmentSpec, machine: Machine) -> str:
    """Why this node's environment is not the job's; "" if it is, or if it will be built."""
    if spec.image is not None:
        own = spec.recipe == SCRIPT and spec.packages is None
        return images.why_not(spec.image, machine) if own else "an image is for a script alone"
    if spec.packages is not None:
        return packages.why_not(spec.packages, machine)
    if spec.environment != machine.training.shown.lock:
        return "it was quoted for another training environment than this node has by now"
    return ""


def _lay_out_work(folder: Path, spec: AssignmentSpec) -> None:
    """The project as its own folder, to run in and to write to; and what an earlier attempt had
    saved where it lay, for a script that looks there by itself."""
    laid = [(folder / "inputs" / SCRIPT, folder / "job" / WORK)]
    if spec.resume is not None and spec.resume.place:
        laid.append((folder / "inputs" / RESUME, folder / "job" / spec.resume.place))
    for source, target in laid:
        shutil.copytree(source, target, copy_function=shutil.copyfile, dirs_exist_ok=True)


def _strange(spec: AssignmentSpec) -> str:
    """Which name in it could lead out of the job's folder, or onto another; "" if none does."""
    given = [one.name for one in spec.inputs]
    for name in spec.secrets:
        if not _SECRET.fullmatch(name):
            return f"no secret can be called {name[:80]!r}"
    for name in spec.egress:
        try:
            reach.parse(name)
        except reach.BadName as error:
            return str(error)
    place = spec.resume.place if spec.resume is not None else ""
    if paths.fault_of_place(place):
        return f"its checkpoint would be laid at {place[:80]!r}, outside of its folders"
    for name, these, _ in folders_of(spec):
        if why := paths.fault_of_name(name) or paths.fault_of_paths(one.path for one in these):
            return why
    return "its inputs' names clash" if len({*given, RESUME}) <= len(given) else ""


def _unfit_for_gang(spec: AssignmentSpec, machine: Machine) -> str:
    """Why this node can't be a rank of its gang; "" if it can, or there is none."""
    if spec.gang is None:
        return "it is of several nodes, and names none" if spec.world != 1 else ""
    if machine.lan is None:
        return "this node takes no part in gangs of several nodes"
    if len(spec.gang.members) != spec.world or spec.rank >= spec.world:
        return "its gang has another size than it says"
    own = spec.gang.members[spec.rank]
    if own.lan != machine.lan.address:
        return f"it was placed on {own.lan}, and this node is at {machine.lan.address} by now"
    try:
        _network(spec, machine)
    except ValueError as error:
        return f"its network makes no sense: {error}"
    return ""


def _misfit(spec: AssignmentSpec, machine: Machine, taken: Collection[str]) -> str:
    """What of this machine does not suffice; "" if all of it does."""
    ours = {device.uuid for device in machine.inventory.devices}
    strange = [uuid for uuid in spec.devices if uuid not in ours]
    if not spec.devices or strange:
        return f"it asks for the device {strange[0]}, which isn't here" if strange else "no device"
    if busy := sorted(set(spec.devices) & set(taken)):
        return f"the device {busy[0]} is still in use"
    laid = sum(file.bytes for file in _laid_out(spec))
    if laid > spec.disk_bytes:
        return (
            f"its project and checkpoint have {laid >> 20} MiB, and it books "
            f"{spec.disk_bytes >> 20} MiB of disk"
        )
    if spec.image is not None:
        room = spec.disk_bytes + spec.image.bytes + image_room(spec.image.bytes)
        if room > machine.inventory.disk_bytes:
            return f"its image and its disk may take {room >> 30} GiB, which are not free here"
    if spec.memory_bytes > machine.inventory.memory_bytes:
        has, books = machine.inventory.memory_bytes >> 20, spec.memory_bytes >> 20
        return f"it books {books} MiB of memory, and this machine has {has} MiB"
    return ""


def _laid_out(spec: AssignmentSpec) -> list[File]:
    """The files that are copied into the work folder, and count as its disk."""
    if spec.recipe != SCRIPT:
        return []
    project = [file for one in spec.inputs if one.name == SCRIPT for file in one.files]
    return project + (spec.resume.files if spec.resume and spec.resume.place else [])


def _order(folder: Path, spec: AssignmentSpec, machine: Machine, within: Within) -> KeeperOrder:
    assert machine.rung is not None
    parameters = catalog.validate(spec.recipe, spec.parameters)
    gpus = [uuid for uuid in spec.devices if uuid in machine.minors]
    names = [name for name, _, _ in folders_of(spec)]
    return KeeperOrder(
        argv=catalog.command(spec.recipe, parameters),
        rung=machine.rung,
        limits=Limits(
            memory_bytes=spec.memory_bytes,
            disk_bytes=spec.disk_bytes,
            cpus=list(machine.cores),
            pids=_ALONE_PIDS if len(spec.devices) == 1 and spec.gang is None else _GANG_PIDS,
        ),
        save_ms=round(spec.save_s * 1000),
        grace_ms=round(spec.grace_s * 1000),
        env=_environment(spec, gpus),
        inputs={name: str(folder / "inputs" / name) for name in names},
        # Bound beside its own, which reads the base and torch of the node's.
        training_env=list(machine.training.folders),
        environment=str(within) if isinstance(within, Path) else "",
        image=within if isinstance(within, Image) else None,
        gpus=[machine.minors[uuid] for uuid in gpus],
        egress=spec.egress,
        networks=machine.network.allow,
        cwd=f"{_INSIDE}/{WORK}" if spec.recipe == SCRIPT else _INSIDE,
        network=_network(spec, machine),
    )


def _network(spec: AssignmentSpec, machine: Machine) -> Network | None:
    """The gang's network as this rank joins it; raises ValueError for addresses that are none."""
    if spec.gang is None or machine.lan is None:
        return None
    own = spec.gang.members[spec.rank]
    return Network(
        id=spec.gang.network,
        address=own.address,
        lan=own.lan,
        port=own.port,
        mtu=machine.lan.mtu,
        peers=[
            Peer(address=member.address, lan=member.lan, port=member.port)
            for rank, member in enumerate(spec.gang.members)
            if rank != spec.rank
        ],
    )


def _environment(spec: AssignmentSpec, gpus: list[str]) -> dict[str, str]:
    told = {
        "GRIDLOOM_JOB": f"{_INSIDE}/job.json",
        "GRIDLOOM_INPUTS": f"{_INSIDE}/inputs",
        "GRIDLOOM_OUTPUT": f"{_INSIDE}/{OUTPUT}",
        "GRIDLOOM_METRICS": f"{_INSIDE}/{METRICS}",
    }
    if spec.resume is not None:
        told["GRIDLOOM_RESUME_FROM"] = f"{_INSIDE}/inputs/{RESUME}"
    if spec.gang is not None:
        told |= _meeting(spec, spec.gang)
    if gpus:
        told["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return told


def _meeting(spec: AssignmentSpec, gang: Gang) -> dict[str, str]:
    """What torch.distributed and its like look for: one process on each node, which may start
    more (torchrun sets its own for those)."""
    return {
        "MASTER_ADDR": gang.members[0].address,
        "MASTER_PORT": str(_MASTER_PORT),
        "RANK": str(spec.rank),
        "WORLD_SIZE": str(spec.world),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "NODE_RANK": str(spec.rank),
        "NNODES": str(spec.world),
        "GLOO_SOCKET_IFNAME": CARD,
        "NCCL_SOCKET_IFNAME": CARD,
        "NCCL_IB_DISABLE": "1",  # no card but ours is in the sandbox
    }


def _told(spec: AssignmentSpec) -> dict[str, object]:
    """job.json."""
    return {
        "job": str(spec.job),
        "recipe": spec.recipe,
        "parameters": spec.parameters,
        "inputs": {one.name: f"{_INSIDE}/inputs/{one.name}" for one in spec.inputs},
        "output": f"{_INSIDE}/{OUTPUT}",
        "metrics": f"{_INSIDE}/{METRICS}",
        "resume_from": f"{_INSIDE}/inputs/{RESUME}" if spec.resume else None,
        "seed": spec.seed,
        "checkpoint_s": spec.checkpoint_s,
        "lineage": spec.lineage,
        "gang": _told_of_gang(spec),
    }


def _told_of_gang(spec: AssignmentSpec) -> dict[str, object] | None:
    """The gang, for a recipe that makes a cluster of it; None for a job on one GPU."""
    if spec.gang is None and len(spec.devices) == 1:
        return None
    if spec.gang is None:  # several GPUs of one node meet on its own loopback
        return {
            "rank": 0,
            "addresses": ["127.0.0.1"],
            "gpus": [len(spec.devices)],
            "gpus_min": len(spec.devices),
            "token": secrets.token_hex(32),
        }
    members = spec.gang.members
    return {
        "rank": spec.rank,
        "addresses": [member.address for member in members],
        "gpus": [member.gpus for member in members],
        "token": spec.gang.token,
        "gather_s": spec.gang.gather_s,
        "gpus_min": spec.gang.gpus_min,
    }
