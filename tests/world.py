"""A small market to test in: made of rows as the services would leave them.

Nodes here have real keys and sign what they say; no process stands behind them (the story test
has real ones).
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.contrib.auth.models import User

from agent import protocol
from buyers.models import Job
from marketplace import accounts
from marketplace.core.ids import uuid7
from marketplace.core.money import MICRO
from marketplace.ledger import services as ledger
from marketplace.models import Org
from scheduler import assignments, leases, metering
from scheduler.drafting import Placement
from scheduler.models import Assignment, Lease
from scheduler.seats import seated
from suppliers.models import Gpu, Node, Offer, Pulse, Site

GIB = 2**30
_numbers = count(1)


@dataclass
class Agent:
    """Speaks for one node: what it says it has, and signs claims for."""

    node: Node
    key: Ed25519PrivateKey
    boot_id: str = "boot-1"
    seq: int = 0
    claims: dict[UUID, int] = field(default_factory=dict)

    def says(self, *statuses: protocol.Status, now: datetime) -> None:
        """One heartbeat, as the agents' process takes it in."""
        self.seq += 1
        beat = protocol.Heartbeat(
            seq=self.seq, boot_id=self.boot_id, up_ms=0, assignments=list(statuses)
        )
        Node.objects.filter(pk=self.node.pk).update(last_seen_at=now)
        metering.beat(self.node, beat, now=now)
        assignments.report(self.node, statuses, boot_id=self.boot_id, now=now)

    def claim(self, share: Assignment, running_ms: int, *, final: bool = False) -> protocol.Usage:
        """A signed claim of so much running time."""
        n = self.claims[share.pk] = self.claims.get(share.pk, -1) + 1
        body = protocol.encode(
            protocol.Claim(
                assignment=share.pk, epoch=share.lease.epoch, n=n, boot_id=self.boot_id,
                running_ms=running_ms, step=0, checkpoint=None, millijoules=running_ms * 40,
                measured=False, final=final,
            )
        )  # fmt: skip
        signature = self.key.sign(protocol.claim_bytes(self.node.pk, body))
        return protocol.Usage(claim=body, signature=signature)


def user(name: str = "") -> User:
    """A user."""
    name = name or f"user{next(_numbers)}"
    return User.objects.create_user(f"{name}@example.org", f"{name}@example.org", "secret")


def org(name: str = "", *, now: datetime, wallet: int = 0) -> Org:
    """An org with an owner, and `wallet` micros."""
    made = accounts.create_org(name or f"Org {next(_numbers)}", owner=user(), now=now)
    if wallet:
        top_up(made, wallet, now=now)
    return made


def top_up(to: Org, amount: int, *, now: datetime) -> None:
    """Money into a wallet, as a payment would bring it. In a transaction (the test's)."""
    move = ledger.Move("top_up", ledger.CASH, ledger.wallet(to.pk), amount, uuid7())
    ledger.post([move], now=now)


def agent(
    supplier: Org, *, now: datetime, gpus: int = 1, ask: int = MICRO, **changes: Any
) -> Agent:
    """A ready, connected node with an open offer."""
    number = next(_numbers)
    site = changes.pop("site", None) or Site.objects.create(
        org=supplier, name=f"Site {number}", region=changes.pop("region", "eu-west"),
        trust=changes.pop("trust", 3), created_at=now,
    )  # fmt: skip
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    gpu_class = changes.pop("gpu_class", "h100-sxm")
    memory = changes.pop("gpu_memory", 80 * GIB)
    offered = {name: changes.pop(name) for name in ("scripts", "audience", "windows", "notice_s")
               if name in changes}  # fmt: skip
    node = Node.objects.create(
        **{
            "site": site, "name": f"node-{number}", "state": "ready", "state_since": now,
            "public_key": public, "fingerprint": protocol.fingerprint(public),
            "boot_id": "boot-1", "session": uuid7(), "last_seen_at": now, "confirmed_at": now,
            "environment": "e" * 64, "disk_bytes": 1000 * GIB, "memory_bytes": 512 * GIB,
            "cpu_cores": 64, "sandbox": "bubblewrap", **changes,
        }
    )  # fmt: skip
    Gpu.objects.bulk_create(
        Gpu(node=node, uuid=f"GPU-{number}-{index}", index=index, name=gpu_class,
            gpu_class=gpu_class, memory_bytes=memory, watts=700)
        for index in range(gpus)
    )  # fmt: skip
    Offer.objects.create(
        node=node, ask_micros=ask, state="open", state_since=now,
        **{"notice_s": 60, **offered},
    )  # fmt: skip
    return Agent(node, key)


def job(buyer: Org, *, now: datetime, **changes: Any) -> Job:
    """A queued job that any H100 would do for."""
    return Job.objects.create(
        **{
            "org": buyer, "name": "job", "created_by": buyer.members.first(), "created_at": now,
            "recipe": "script", "parameters": {"entry": "main.py", "args": []}, "order": "bid",
            "memory_bytes": 10 * GIB, "disk_bytes": 10 * GIB, "limits": {"h100-sxm": 5 * MICRO},
            "budget_micros": 100 * MICRO, "queued_at": now, "state": "queued",
            "state_since": now, **changes,
        }
    )  # fmt: skip


def lease(
    of: Job, *agents: Agent, now: datetime, price: int = 2 * MICRO, gpus: int | None = None
) -> Lease:
    """`of`, placed on all GPUs of the agents' nodes, or on the first so many of each."""
    seats = tuple(
        seated(each.node.offers.get(state="open"), each.node.gpus.order_by("index")[:gpus], price)
        for each in agents
    )
    gpu_class = seats[0].gpus[0].gpu_class
    placed = leases.place([Placement(of, gpu_class, 0, seats)], round=None, now=now)
    assert placed, "the wallet should have covered this start"
    lease = Lease.objects.get(pk=placed[0].id)
    lease.job = of
    return lease


def status(share: Assignment, state: str, **changes: Any) -> protocol.Status:
    """What a node says of an assignment."""
    return protocol.Status(id=share.pk, epoch=share.lease.epoch, state=state, **changes)  # type: ignore[arg-type]


def exited(code: int | None, why: str = "exited") -> protocol.Exit:
    """A process's end."""
    return protocol.Exit(code=code, signal=None, why=why)


def listening(now: datetime, *, for_s: float = 3600) -> None:
    """The market has been hearing nodes for so long."""
    Pulse.objects.update_or_create(
        process="agents", defaults={"at": now, "gapless_since": now - timedelta(seconds=for_s)}
    )
