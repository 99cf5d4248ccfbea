"""How far nodes can be relied on, read from how their leases ended in the last half year."""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import connection

from marketplace import bulk
from marketplace.core.reliability import HALF_LIFE_DAYS, Record, Reliability, judge
from marketplace.core.states import NODE_FAULT_ENDS, SUPPLIER_SIDE_ENDS

# Each lease counts half as much for every half-life of its age; as `reliability.assess` weighs it.
_RECORDS: Final = """
    SELECT node_id,
        coalesce(sum(weight) FILTER (WHERE NOT broken), 0),
        coalesce(sum(weight) FILTER (WHERE broken), 0),
        sum(weight * accrued_ms / 3600000), count(*)
    FROM (
        SELECT a.node_id, a.accrued_ms, a.at_fault AND l.end_reason = ANY(%(faults)s) AS broken,
            power(0.5::float8,
                extract(epoch FROM %(now)s - a.gone_at)::float8 / %(half_life)s::float8) AS weight
        FROM scheduler_assignment a JOIN scheduler_lease l ON l.id = a.lease_id
        WHERE (%(nodes)s::uuid[] IS NULL OR a.node_id = ANY(%(nodes)s::uuid[])) AND a.gone_at >= %(since)s
    ) AS outcomes GROUP BY node_id
"""


def known(nodes: Collection[UUID] | None, *, now: datetime) -> dict[UUID, Reliability]:
    """Node id → its record, where there is one; None: of all nodes. One query."""
    mtbf_h = settings.POLICY.mtbf_s / 3600
    with connection.cursor() as cursor:
        cursor.execute(
            _RECORDS,
            {
                "now": now, "half_life": HALF_LIFE_DAYS * 86_400,
                "nodes": None if nodes is None else bulk.ids(nodes),
                "since": now - timedelta(days=180),
                "faults": sorted(SUPPLIER_SIDE_ENDS | NODE_FAULT_ENDS),
            },
        )  # fmt: skip
        return {
            node: judge(Record(kept, broken, hours, leases), mtbf_h=mtbf_h)
            for node, kept, broken, hours, leases in cursor.fetchall()
        }


def unknown() -> Reliability:
    """Of a node that has no record."""
    return judge(Record(), mtbf_h=settings.POLICY.mtbf_s / 3600)
