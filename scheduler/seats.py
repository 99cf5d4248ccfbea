"""Who sits where: a gang's machines and GPUs, as far as a lease and its specs tell of them."""

import json
from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

import psycopg

from marketplace import bulk
from suppliers.models import Gpu, Offer


class Machine(NamedTuple):
    """A node."""

    id: UUID
    name: str
    supplier: UUID
    lan_address: str
    environment: str
    memory_bytes: int
    bandwidth_mbps: float
    fitted: int
    """Its GPUs, let or not."""


class Device(NamedTuple):
    """A GPU."""

    id: UUID
    uuid: str
    gpu_class: str
    memory_bytes: int


class Seat(NamedTuple):
    """One node's part in a gang: its offer, its GPUs, and what the buyer pays for each."""

    offer: UUID
    machine: Machine
    gpus: Sequence[Device]
    price_micros: int
    ask_micros: int
    """What the supplier nets at least."""


def seated(offer: Offer, gpus: Sequence[Gpu], price_micros: int) -> Seat:
    """The same from rows."""
    devices = tuple(Device(gpu.pk, gpu.uuid, gpu.gpu_class, gpu.memory_bytes) for gpu in gpus)
    node = offer.node
    machine = Machine(
        node.pk, node.name, node.site.org_id, node.lan_address, node.environment,
        node.memory_bytes, node.bandwidth_mbps, node.gpus.filter(present=True).count(),
    )  # fmt: skip
    return Seat(offer.pk, machine, devices, price_micros, offer.ask_micros)


class Devices(NamedTuple):
    """GPUs of one class as they were read: instances are made of those only that are seated."""

    told: str
    """JSON, in the order of the machine: id, uuid and bytes of memory of each."""
    mark: int
    """A hash of their ids, in whatever order."""

    def of(self, gpu_class: str) -> list[Device]:
        """As instances."""
        gpus = json.loads(self.told)
        return [Device(UUID(pk), uuid, gpu_class, memory) for pk, uuid, memory in gpus]


NONE: Final = Devices("[]", 0)
MARK: Final = "bit_xor(uuid_hash_extended(d.id, 0))"
"""Of GPUs d: as `Devices` has it."""


class Idle(NamedTuple):
    """What nobody has of an open offer."""

    version: int
    """Of the offer's rows: as a lot's."""
    mark: int
    """Of its GPUs: as `Devices` has it."""
    memory_bytes: int
    """Of the smallest of them."""


def idle(
    offers: Collection[UUID], session: "psycopg.Connection[Any]"
) -> dict[tuple[UUID, str, str], Idle]:
    """(offer, class, job that they are held for or "") → what nobody has of what stands open on
    machines that may be let. One query, in this session, from whatever thread."""
    with psycopg.ClientCursor(session) as cursor:
        cursor.execute(_IDLE, {"offers": bulk.ids(offers)})
        return {(offer, name, job): Idle(*told) for offer, name, job, *told in cursor.fetchall()}


VERSION: Final = """hash_record_extended(ROW(
        o.xmin, s.xmin, n.site_id, n.session, n.lan_address, n.environment, n.disk_bytes, n.nvlink,
        n.egress, n.builds, n.python, n.torch, n.registries, n.name, n.memory_bytes, n.bandwidth_mbps
    ), 0)"""
"""Of offer o on node n at site s: a heartbeat writes a node anew and changes nothing in it. What an
inventory says is new only in a new session, a moment after it: of that, GPUs tell for themselves."""
LETTABLE: Final = """o.state = 'open' AND n.state = 'ready' AND n.lost_at IS NULL AND NOT n.owner_busy
        AND n.boot_id > '' AND n.session IS NOT NULL AND n.last_seen_at IS NOT NULL"""
"""The nodes are those of Node.objects.lettable."""
# What is let is looked up GPU by GPU, and not joined: until PostgreSQL has counted it, it is taken for
# nothing, and gone through for each GPU, which took half a second where 500 were let.
_IDLE: Final = f"""
    SELECT o.id, g.gpu_class, coalesce(g.job_id::text, ''), {VERSION}, g.mark, g.memory
    FROM suppliers_offer o
    JOIN suppliers_node n ON n.id = o.node_id
    JOIN suppliers_site s ON s.id = n.site_id
    JOIN (
        SELECT d.node_id, d.gpu_class, {MARK} AS mark, min(d.memory_bytes) AS memory, k.job_id
        FROM suppliers_gpu d
        LEFT JOIN scheduler_heldgpu h ON h.gpu_id = d.id
        LEFT JOIN scheduler_hold k ON k.id = h.hold_id
        WHERE d.present
            AND d.node_id IN (SELECT node_id FROM suppliers_offer WHERE id = ANY(%(offers)s::uuid[]))
            AND (
                SELECT l.gpu_id FROM scheduler_leasedgpu l
                WHERE l.gpu_id = d.id AND l.released_at IS NULL
            ) IS NULL
        GROUP BY d.node_id, d.gpu_class, k.job_id
    ) g ON g.node_id = n.id
    WHERE o.id = ANY(%(offers)s::uuid[]) AND {LETTABLE}
"""  # noqa: S608 (all of it is written above)
