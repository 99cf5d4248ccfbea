"""A gang on this machine: each rank with its own state folder, keeper and sandbox; no market."""

import secrets
import shutil
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

from agent import keeper, orders
from agent import order as files
from agent.config import open_state
from agent.hardware import Machine
from agent.lan import Lan
from agent.order import Status
from agent.protocol import FIRST_PORT, AssignmentSpec, Gang, Input, Member, Resume
from agent.sandbox import outputs
from tests.agent import node as nodes
from tests.agent.sandbox.jobs import WITHIN_S

LAN = Lan("127.0.0.1", 1450)


class Ranks:
    """The assignments of one lease. `inputs` by name; resume is the checkpoint to go on from."""

    def __init__(
        self,
        place: Path,
        count: int,
        inputs: dict[str, Path],
        *,
        gpus_min: int = 0,
        **changes: object,
    ) -> None:
        place.mkdir(exist_ok=True)
        self.folders = [place / str(rank) for rank in range(count)]
        if "resume" in inputs:
            changes["resume"] = Resume(step=0, files=[])
        epoch = 1 + secrets.randbelow(2**23 - 1)
        gang = Gang(
            gather_s=180.0,
            gpus_min=gpus_min or count,
            network=epoch,
            token=f"{epoch:064x}",
            members=[
                Member(
                    address=f"10.64.0.{rank + 1}", lan=LAN.address, port=FIRST_PORT + rank, gpus=1
                )
                for rank in range(count)
            ],
        )
        for rank, folder in enumerate(self.folders):
            state = open_state(place / f"state-{rank}")
            state.make()
            machine = replace(nodes.machine(state), lan=LAN)
            spec = _spec(gang, rank, machine, list(inputs), epoch=epoch, **changes)
            folder.mkdir()
            for name, source in inputs.items():
                shutil.copytree(source, folder / "inputs" / name)
                for path in (folder / "inputs" / name).iterdir():
                    path.chmod(0o644)
            orders.check(spec, machine, ())
            orders.write(folder, spec, machine)
            files.write_paid_through(folder, 3_600_000)

    def start(self) -> None:
        for folder in self.folders:
            keeper.start(folder)

    def end(self, within_s: float = WITHIN_S) -> list[Status]:
        """All last words."""
        found = [keeper.wait(folder, within_s) for folder in self.folders]
        assert all(found), self.said()
        return [one for one in found if one]

    def said(self, rank: int = 0) -> str:
        logs = ("stdout.log", "stderr.log")
        texts = [(self.folders[rank] / log) for log in logs]
        return "\n".join(one.read_text(errors="replace") for one in texts if one.exists())

    def output(self, rank: int = 0) -> Path:
        return self.folders[rank] / "job" / "output"

    def destroy(self) -> None:
        for folder in self.folders:
            keeper.kill(folder)
            outputs.clean(folder)


def _spec(
    gang: Gang, rank: int, machine: Machine, inputs: list[str], **changes: object
) -> AssignmentSpec:
    fields: dict[str, object] = {
        "assignment": uuid4(),
        "lease": UUID(int=1),
        "job": UUID(int=2),
        "org": UUID(int=7),
        "recipe": "full",
        "parameters": {},
        "inputs": [Input(name=name, files=[]) for name in inputs if name != "resume"],
        "resume": None,
        "seed": 3,
        "rank": rank,
        "world": len(gang.members),
        "gang": gang,
        "devices": [machine.inventory.devices[0].uuid],
        "memory_bytes": 3 * 2**30,
        "disk_bytes": 256 * 2**20,
        "environment": machine.training.shown.lock,
        "grace_s": 20.0,
        "save_s": 5.0,
        "start_timeout_s": 60.0,
        "hang_s": 600.0,
        "checkpoint_s": 60.0,
        **changes,
    }
    return AssignmentSpec(**fields)  # type: ignore[arg-type]
