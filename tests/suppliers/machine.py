"""A supplier's machine, as far as the wire shows it: a key, an inventory, and honest sums."""

from dataclasses import dataclass, field
from uuid import UUID, uuid4

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent import protocol
from agent.protocol import (
    VERSION,
    Device,
    EnrolRequest,
    Environment,
    Heartbeat,
    Hello,
    Inventory,
    OpenedRow,
    ProofCommit,
    ProofOpening,
    ProofTask,
    Sandbox,
    Status,
    merkle_levels,
    merkle_path,
    proof_row,
)

GIB = 2**30
BOOT = "0f2b6a3e-boot"


def cpu_device(uuid: str = "cpu-of-nobody", *, cores: int = 2) -> Device:
    return Device(
        uuid=uuid,
        kind="cpu",
        index=0,
        name="AMD EPYC 9654 96-Core Processor",
        memory_bytes=4 * GIB,
        cores=cores,
    )


def gpu_device(uuid: str, index: int = 0) -> Device:
    return Device(
        uuid=uuid,
        kind="gpu",
        index=index,
        name="NVIDIA H100 80GB HBM3",
        memory_bytes=80 * GIB,
        watts=700,
    )


def inventory(
    *devices: Device, rung: str = "bubblewrap + cgroup v2", harmful: int = 0, **changes: object
) -> Inventory:
    facts: dict[str, object] = {
        "hostname": "rack-1",
        "system": "Linux 6.18",
        "agent_version": "0.1.0",
        "cpu_model": "AMD EPYC 9654 96-Core Processor",
        "cpu_cores": 2,
        "memory_bytes": 8 * GIB,
        "disk_bytes": 100 * GIB,
        "devices": list(devices) or [cpu_device(f"cpu-{uuid4().hex[:12]}")],
        "nvlink": False,
        "measures_power": False,
        "environment": Environment(python="3.11.7", packages={"torch": "2.13.0"}, lock="a" * 64),
        "sandbox": Sandbox(rung=rung, checks=32, held=32 - harmful, harmful=harmful),
    }
    return Inventory(**{**facts, **changes})  # type: ignore[arg-type]


@dataclass
class Machine:
    """One machine with one key. `node` is its id once it has enrolled."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    inventory: Inventory = field(default_factory=inventory)
    node: UUID = field(default_factory=uuid4)
    fingerprint: str = ""

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    def enrol_request(
        self, token: str, *, name: str = "rack-1", version: int = VERSION
    ) -> EnrolRequest:
        return EnrolRequest(
            version=version,
            token=token,
            name=name,
            public_key=self.public_key,
            proof=self.key.sign(protocol.enrol_bytes(token, self.public_key)),
            inventory=self.inventory,
        )

    def hello(
        self,
        nonce: str,
        *,
        server: str,
        boot_id: str = BOOT,
        version: int = VERSION,
        assignments: tuple[Status, ...] = (),
    ) -> Hello:
        return Hello(
            version=version,
            node=self.node,
            nonce=nonce,
            boot_id=boot_id,
            server=server,
            signature=self.key.sign(protocol.hello_bytes(self.node, nonce, boot_id, server)),
            inventory=self.inventory,
            assignments=list(assignments),
        )


def heartbeat(seq: int, *, boot_id: str = BOOT, **more: object) -> Heartbeat:
    facts: dict[str, object] = {
        "seq": seq, "boot_id": boot_id, "up_ms": 1000 * (seq + 1), "assignments": []
    }  # fmt: skip
    return Heartbeat(**{**facts, **more})  # type: ignore[arg-type]


class Prover:
    """Computes a proof as its docstring says (`agent.protocol.ProofTask`), sharing nothing with
    the verifier but the protocol. float64 holds every sum exactly, and is fast on a processor."""

    def __init__(self, task: ProofTask, *, cubes: bool = True) -> None:
        self.task = task
        b = _matrix(task, "b")
        x = _matrix(task, "x")
        self.states = [x]
        for _ in range(task.segments):
            for _ in range(task.links):
                v = (x @ b) % 17
                x = (v * v * v % 17 if cubes else v) - 8
            self.states.append(x)

    @property
    def trees(self) -> list[list[list[bytes]]]:
        """The Merkle tree of X₀ and of the rows after each segment."""
        return [merkle_levels([_bytes(row) for row in state]) for state in self.states]

    def commit(self) -> ProofCommit:
        roots = [tree[-1][0].hex() for tree in self.trees[1:]]
        return ProofCommit(roots=roots, tflops=0.05, memory_gb_s=8.0, disk_mb_s=400.0)

    def open(self, cells: list[tuple[int, int]]) -> ProofOpening:
        trees = self.trees
        return ProofOpening(
            rows=[
                OpenedRow(
                    segment=segment,
                    row=row,
                    before=_bytes(self.states[segment][row]),
                    after=_bytes(self.states[segment + 1][row]),
                    path_before=merkle_path(trees[segment], row) if segment else [],
                    path_after=merkle_path(trees[segment + 1], row),
                )
                for segment, row in cells
            ]
        )


def _matrix(task: ProofTask, name: str) -> np.ndarray:
    rows = [proof_row(task.seed, name, row, task.n) for row in range(task.n)]  # type: ignore[arg-type]
    return np.array([list(row) for row in rows], dtype=np.float64) - 8


def _bytes(row: np.ndarray) -> bytes:
    return row.astype(np.int8).tobytes()
