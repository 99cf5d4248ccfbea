"""Who sits where: a gang's machines and GPUs, as far as a lease and its specs tell of them."""

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from django.db import connection

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
    return Seat(
        offer.pk, machines([offer.node_id])[offer.node_id], devices, price_micros, offer.ask_micros
    )


def machines(nodes: Collection[UUID]) -> dict[UUID, Machine]:
    """Each of these nodes. One query."""
    with connection.cursor() as cursor:
        cursor.execute(_MACHINES, {"nodes": bulk.ids(nodes)})
        return {row[0]: Machine(*row) for row in cursor.fetchall()}


def free(nodes: Collection[UUID]) -> dict[tuple[str, str, str], list[Device]]:
    """(node, class, job that they are held for or "") → GPUs that nobody has, in the order of the
    machine. One query."""
    found: dict[tuple[str, str, str], list[Device]] = {}
    with connection.cursor() as cursor:
        cursor.execute(_FREE, [bulk.ids(nodes)])
        for node, job, *device in cursor.fetchall():
            gpu = Device(*device)
            found.setdefault((node, gpu.gpu_class, job), []).append(gpu)
    return found


_MACHINES: Final = """
    SELECT n.id, n.name, s.org_id, n.lan_address, n.environment, n.memory_bytes, n.bandwidth_mbps,
        coalesce(f.gpus, 0)
    FROM suppliers_node n JOIN suppliers_site s ON s.id = n.site_id
    LEFT JOIN (
        SELECT node_id, count(*) AS gpus FROM suppliers_gpu
        WHERE node_id = ANY(%(nodes)s::uuid[]) AND present GROUP BY node_id
    ) f ON f.node_id = n.id
    WHERE n.id = ANY(%(nodes)s::uuid[])
"""
_FREE: Final = """
    SELECT g.node_id::text, coalesce(o.job_id::text, ''), g.id, g.uuid, g.gpu_class, g.memory_bytes
    FROM suppliers_gpu g
    LEFT JOIN scheduler_heldgpu h ON h.gpu_id = g.id
    LEFT JOIN scheduler_hold o ON o.id = h.hold_id
    LEFT JOIN scheduler_leasedgpu l ON l.gpu_id = g.id AND l.released_at IS NULL
    WHERE g.node_id = ANY(%s::uuid[]) AND g.present AND l.gpu_id IS NULL
    ORDER BY g.node_id, g.index
"""
