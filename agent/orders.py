"""From what the market wants run to how this machine runs it: checked, then written down."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from agent import order as files
from agent import packages, paths
from agent.hardware import Machine
from agent.order import KeeperOrder, Limits
from agent.protocol import AssignmentSpec, File, Malformed, decode, sha256_hex
from agent.recipes import catalog
from agent.record import Record
from agent.sandbox import outputs, reach, workspace

RESUME: Final = "resume"
OUTPUT: Final = "output"
METRICS: Final = "metrics.jsonl"
_INSIDE: Final = "/job"
_SECRET: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


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
    elif spec.world != 1:
        why = "this agent runs jobs of one node only"
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


def write(
    folder: Path, spec: AssignmentSpec, machine: Machine, environment: Path | None = None
) -> None:
    """Makes the work folder's first files and `order.json`, for `agent.keeper.start`.
    `environment`: the job's own, as it was built.

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
    files.write(folder / files.ORDER, _order(folder, spec, machine, environment))


def folders_of(spec: AssignmentSpec) -> list[tuple[str, list[File], bool]]:
    """What to fetch: (name under /job/inputs, its files, whether all orgs may share them)."""
    found = [(one.name, one.files, one.public) for one in spec.inputs]
    if spec.resume is not None:
        found.append((RESUME, spec.resume.files, False))
    return found


def _unlike(spec: AssignmentSpec, machine: Machine) -> str:
    """Why this node's environment is not the job's; "" if it is, or if it will be built."""
    if spec.packages is not None:
        return packages.why_not(spec.packages, machine)
    if spec.environment != machine.training.shown.lock:
        return "it was quoted for another training environment than this node has by now"
    return ""


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
    for name, these, _ in folders_of(spec):
        if why := paths.fault_of_name(name) or paths.fault_of_paths(one.path for one in these):
            return why
    return "its inputs' names clash" if len({*given, RESUME}) <= len(given) else ""


def _misfit(spec: AssignmentSpec, machine: Machine, taken: Collection[str]) -> str:
    """What of this machine does not suffice; "" if all of it does."""
    ours = {device.uuid for device in machine.inventory.devices}
    strange = [uuid for uuid in spec.devices if uuid not in ours]
    if not spec.devices or strange:
        return f"it asks for the device {strange[0]}, which isn't here" if strange else "no device"
    if busy := sorted(set(spec.devices) & set(taken)):
        return f"the device {busy[0]} is still in use"
    if spec.memory_bytes > machine.inventory.memory_bytes:
        has, books = machine.inventory.memory_bytes >> 20, spec.memory_bytes >> 20
        return f"it books {books} MiB of memory, and this machine has {has} MiB"
    return ""


def _order(
    folder: Path, spec: AssignmentSpec, machine: Machine, environment: Path | None
) -> KeeperOrder:
    assert machine.rung is not None
    parameters = catalog.validate(spec.recipe, spec.parameters)
    gpus = [uuid for uuid in spec.devices if uuid in machine.minors]
    names = [name for name, _, _ in folders_of(spec)]
    return KeeperOrder(
        argv=catalog.command(spec.recipe, parameters),
        rung=machine.rung,
        limits=Limits(
            memory_bytes=spec.memory_bytes, disk_bytes=spec.disk_bytes, cpus=list(machine.cores)
        ),
        save_ms=round(spec.save_s * 1000),
        grace_ms=round(spec.grace_s * 1000),
        env=_environment(spec, gpus),
        inputs={name: str(folder / "inputs" / name) for name in names},
        # Its own first: its `python` is the job's, and reads the base and torch of the node's.
        training_env=[*([str(environment)] if environment else []), *machine.training.folders],
        gpus=[machine.minors[uuid] for uuid in gpus],
        egress=spec.egress,
        networks=machine.network.allow,
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
    if gpus:
        told["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return told


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
    }
