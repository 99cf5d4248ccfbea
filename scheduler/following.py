"""The book that a process keeps from one look to the next: only what has moved is read again. The
worker that clears keeps all of it, those who quote its offers.

Triggers (migrations 0016, 0021) write down which nodes moved in which transaction; whoever follows
asks for all that came since the oldest transaction that was under way when it last looked, so one
that commits late is never missed, and one may be read twice. A job's row is known by the transaction
that wrote it last. Every so often, and after a restart or a fault, all is read anew: what a node's leases
came to, which says its tier, fades with time and moves no row.

A book that is behind can cost a gang, which the commit drops under the market's lock, and never let
a GPU twice.
"""

import threading
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.db import connection

from buyers.models import Job
from marketplace.core.fit import Wants
from scheduler import book, lots, snapshots
from scheduler.columns import Columns
from scheduler.lots import Lot
from scheduler.matching.arrays import Array
from scheduler.models import Moved
from scheduler.snapshots import Snapshot

ANEW: Final = timedelta(minutes=10)
_KEPT: Final = timedelta(hours=1)
"""So long a move is kept: longer than anybody follows without reading anew."""


class Offers:
    """All open offers as they were last read, whether or not they stand this minute. Any thread may
    ask."""

    def __init__(self) -> None:
        self._one = threading.Lock()
        self._columns = Columns.of([])
        self._of_node: dict[str, UUID] = {}
        """A node has at most one open offer."""
        self._since: int | None = None
        """The oldest transaction that may have been unseen."""
        self._anew_at: datetime | None = None

    def forget(self) -> None:
        """Reads all anew the next time."""
        with self._one:
            self._since = None

    def standing(self, now: datetime) -> Columns:
        """Those that stand now, in the order of their ids."""
        return self._all(now).standing(now)

    def _all(self, now: datetime) -> Columns:
        """Whatever may be let."""
        with self._one:
            under_way, own = _under_way()
            if own:  # what the caller itself has moved may yet be undone: it is not kept
                return Columns.of(lots.read(now=now))
            since, self._since = self._since, None  # should it fail below, all is read anew
            if since is None or self._anew_at is None or now - self._anew_at >= ANEW:
                Moved.objects.filter(at__lt=now - _KEPT).delete()
                found = lots.read(now=now)
                self._columns, self._of_node, self._anew_at = Columns.of(found), {}, now
                self._note(found)
            elif moved := moved_since(since):
                found = lots.read(now=now, nodes=moved)
                gone = [self._of_node.pop(str(node), None) for node in moved]
                self._columns = self._columns.moved(filter(None, gone), found)
                self._note(found)
            self._since = under_way
            return self._columns

    def _note(self, found: Sequence[Lot]) -> None:
        for lot in found:
            self._of_node[lot.stands.node] = lot.offer_id


OFFERS: Final = Offers()
"""Those of this process, for its quotes."""


class Followed:
    """All queued jobs and open offers as they were last read. For one thread."""

    def __init__(self) -> None:
        self._jobs: dict[UUID, Job] = {}
        self._wanted: dict[UUID, Wants] = {}
        self._versions: dict[UUID, int] = {}
        self._offers = Offers()
        self.ladders: dict[str, Array] = {}
        """Of each node in the last round: the prices that balanced its cell, USD per GPU-hour."""

    def forget(self) -> None:
        """Reads all anew the next time: after a fault, when rows here may say what was undone."""
        self.__init__()  # type: ignore[misc]  # what a new one knows: nothing

    def read(self, now: datetime) -> Snapshot:
        """The book as it stands."""
        jobs = self._queued()
        standing = self._offers.standing(now) if jobs else Columns.of([])
        wanted, versions = list(self._wanted.values()), dict(self._versions)
        made_of = snapshots.Read(jobs, wanted, versions, standing.lots)
        return snapshots.made(made_of, snapshots.on_offer(standing), now=now)

    def standing(self, now: datetime) -> Sequence[Lot]:
        """The offers that stand open."""
        return self._offers.standing(now).lots

    def _queued(self) -> list[Job]:
        """All that wait, those first that have waited longest; rows that were written since are
        read again."""
        with connection.cursor() as cursor:
            cursor.execute(_QUEUED)
            waiting: dict[UUID, int] = dict(cursor.fetchall())
        known, versions = self._jobs, self._versions
        new = [pk for pk, version in waiting.items() if versions.get(pk) != version]
        read, read_versions = snapshots.jobs_of(new) if new else ({}, {})
        self._jobs = {
            pk: read[pk] if pk in read else known[pk]
            for pk in waiting
            if pk in read or versions.get(pk) == waiting[pk]
        }
        self._versions = {pk: read_versions.get(pk, waiting[pk]) for pk in self._jobs}
        # Which site may see a job's secrets is the secrets' to say, not its row's.
        self._wanted = {
            pk: book.wants(job) if pk in read or job.secrets else self._wanted[pk]
            for pk, job in self._jobs.items()
        }
        return list(self._jobs.values())


def oldest_under_way() -> int:
    """Whatever transaction has a smaller number is over, and all that it wrote is seen from here."""
    return _under_way()[0]


def _under_way() -> tuple[int, bool]:
    """The oldest transaction under way, and whether our own, if we are in one, has moved something."""
    with connection.cursor() as cursor:
        cursor.execute(_UNDER_WAY)
        oldest, own = cursor.fetchone()
        return int(oldest), bool(own)


def moved_since(since: int) -> list[UUID]:
    """Nodes of which something moved in this transaction or a later one."""
    with connection.cursor() as cursor:
        cursor.execute(_MOVED_SINCE, [since])
        return [row[0] for row in cursor.fetchall()]


_UNDER_WAY: Final = """
    SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint, EXISTS (
        SELECT FROM scheduler_moved WHERE xid = pg_current_xact_id_if_assigned()::text::bigint
    )
"""
_MOVED_SINCE: Final = "SELECT DISTINCT unnest(nodes) FROM scheduler_moved WHERE xid >= %s"
_QUEUED: Final = """
    SELECT id, xmin::text::bigint FROM buyers_job WHERE state = 'queued' ORDER BY queued_at, id
"""
