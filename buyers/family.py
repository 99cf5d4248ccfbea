"""Where a model comes from and what has come of it: bases, jobs, models, and jobs on those."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from django.db import connection

from buyers.models import Artifact, Job
from marketplace.models import Org

_DEEP: Final = 24
_MANY: Final = 200

# From a model up: the job that made it, the models that this job started from, and so on. UNION
# drops what is reached by two ways of one length, so that no lineage can make it grow without end.
_UP: Final = """
    WITH RECURSIVE kin(artifact, job, base, other, third, depth) AS (
        SELECT a.id, j.id, j.base_id, j.other_id, j.third_id, 0
        FROM buyers_artifact a LEFT JOIN buyers_job j ON j.id = a.job_id WHERE a.id = %s
        UNION
        SELECT a.id, j.id, j.base_id, j.other_id, j.third_id, kin.depth + 1
        FROM kin JOIN buyers_artifact a ON a.id IN (kin.base, kin.other, kin.third)
        LEFT JOIN buyers_job j ON j.id = a.job_id
        WHERE kin.depth < %s
    )
    SELECT job, artifact, MAX(depth) FROM kin GROUP BY job, artifact
    ORDER BY MAX(depth) DESC, artifact LIMIT %s
"""
# From a model down: the org's jobs on it, and what they made; which of it stood where, says `start`.
_DOWN: Final = """
    WITH RECURSIVE kin(start, job, artifact, depth) AS (
        SELECT %s::uuid, j.id, a.id, 1
        FROM buyers_job j LEFT JOIN buyers_artifact a ON a.job_id = j.id
        WHERE (j.base_id = %s OR j.other_id = %s OR j.third_id = %s) AND j.org_id = %s
        UNION
        SELECT kin.artifact, j.id, a.id, kin.depth + 1
        FROM kin JOIN buyers_job j
        ON j.base_id = kin.artifact OR j.other_id = kin.artifact OR j.third_id = kin.artifact
        LEFT JOIN buyers_artifact a ON a.job_id = j.id
        WHERE j.org_id = %s AND kin.depth < %s
    )
    SELECT start, job, artifact FROM kin ORDER BY depth, job, start LIMIT %s
"""


@dataclass(frozen=True)
class Kin:
    """One of the family: a job and the model that it made, either of which may be missing.

    `depth` counts generations from the oldest on; `here` marks the model that was asked about.
    """

    job: Job | None
    artifact: Artifact | None
    depth: int
    here: bool = False


def tree(artifact: Artifact, org: Org) -> Sequence[Kin]:
    """All that `artifact` was made from, the oldest first, then all that the org made from it; four
    queries. What came by several ways stands once."""
    pk = artifact.pk
    with connection.cursor() as cursor:
        cursor.execute(_UP, [pk, _DEEP, _MANY])
        up: list[tuple[UUID | None, UUID, int]] = cursor.fetchall()
        cursor.execute(_DOWN, [pk, pk, pk, pk, org.pk, org.pk, _DEEP, _MANY])
        down: list[tuple[UUID, UUID, UUID | None]] = cursor.fetchall()
    wanted = [row[0] for row in up if row[0]] + [row[1] for row in down]
    jobs = Job.objects.select_related("dataset").in_bulk(wanted)
    models = Artifact.objects.in_bulk(
        [row[1] for row in up] + [row[2] for row in down if row[2]],
    )
    last = max(row[2] for row in up)
    line = [
        Kin(jobs.get(job) if job else None, models[each], last - depth, here=each == pk)
        for job, each, depth in up
    ]
    return line + [
        Kin(jobs[job], models.get(made) if made else None, last + depth)
        for job, made, depth in _depth_first(down, pk)
    ]


def _depth_first(
    rows: Sequence[tuple[UUID, UUID, UUID | None]], start: UUID
) -> Iterator[tuple[UUID, UUID | None, int]]:
    """Jobs with what they made and their generation; each below the nearest that it started from,
    the oldest first."""
    below: dict[UUID, list[tuple[UUID, UUID | None]]] = {}
    seen: set[tuple[UUID, UUID | None]] = set()
    for parent, job, made in rows:
        if (job, made) not in seen:
            seen.add((job, made))
            below.setdefault(parent, []).append((job, made))
    waiting = [(job, made, 1) for job, made in reversed(below.get(start, []))]
    while waiting:
        job, made, depth = waiting.pop()
        yield job, made, depth
        children = below.get(made, []) if made else []
        waiting += [(job, each, depth + 1) for job, each in reversed(children)]
