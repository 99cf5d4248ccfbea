"""Where a model comes from and what has come of it: bases, jobs, models, and jobs on those."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from django.db import connection

from buyers.models import Artifact, Job
from marketplace.models import Org

_DEEP: Final = 24
_MANY: Final = 200

# From a model up: the job that made it, the base of that job, and so on.
_UP: Final = """
    WITH RECURSIVE kin(artifact, job, base, depth) AS (
        SELECT a.id, j.id, j.base_id, 0
        FROM buyers_artifact a LEFT JOIN buyers_job j ON j.id = a.job_id WHERE a.id = %s
        UNION ALL
        SELECT a.id, j.id, j.base_id, kin.depth + 1
        FROM kin JOIN buyers_artifact a ON a.id = kin.base LEFT JOIN buyers_job j ON j.id = a.job_id
        WHERE kin.depth < %s
    )
    SELECT job, artifact FROM kin ORDER BY depth DESC
"""
# From a model down: the org's jobs on it, and what they made. Depth first, the oldest first.
_DOWN: Final = """
    WITH RECURSIVE kin(job, artifact, depth, path) AS (
        SELECT j.id, a.id, 1, ARRAY[j.id]
        FROM buyers_job j LEFT JOIN buyers_artifact a ON a.job_id = j.id
        WHERE j.base_id = %s AND j.org_id = %s
        UNION ALL
        SELECT j.id, a.id, kin.depth + 1, kin.path || j.id
        FROM kin JOIN buyers_job j ON j.base_id = kin.artifact
        LEFT JOIN buyers_artifact a ON a.job_id = j.id
        WHERE j.org_id = %s AND kin.depth < %s
    )
    SELECT job, artifact, depth FROM kin ORDER BY path LIMIT %s
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
    """The line up to `artifact`, then all that the org made from it; four queries."""
    with connection.cursor() as cursor:
        cursor.execute(_UP, [artifact.pk, _DEEP])
        up: list[tuple[UUID | None, UUID]] = cursor.fetchall()
        cursor.execute(_DOWN, [artifact.pk, org.pk, org.pk, _DEEP, _MANY])
        down: list[tuple[UUID, UUID | None, int]] = cursor.fetchall()
    jobs = Job.objects.select_related("dataset").in_bulk([row[0] for row in [*up, *down] if row[0]])
    models = Artifact.objects.in_bulk([row[1] for row in [*up, *down] if row[1]])
    line = [
        Kin(jobs.get(job) if job else None, models[pk], depth, here=pk == artifact.pk)
        for depth, (job, pk) in enumerate(up)
    ]
    last = len(up) - 1
    return line + [
        Kin(jobs[job], models.get(pk) if pk else None, last + depth) for job, pk, depth in down
    ]
