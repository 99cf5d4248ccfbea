"""A round: the book is read, cleared by the pure engine, and written down in one transaction.

Reading, clearing and drafting happen outside of any lock; the commit takes the market's lock, and
drops gangs of which anything has moved (`scheduler.seating`).
"""

import gc
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import numpy as np
from django.db import transaction

from marketplace import bulk, locks
from marketplace.core.ids import uuid7
from scheduler import (
    archive,
    displacing,
    explaining,
    history,
    leases,
    seating,
    snapshots,
)
from scheduler.beside import Aside
from scheduler.drafting import Placement
from scheduler.explaining import Cleared
from scheduler.following import Followed
from scheduler.leases import MARKET_LOCK
from scheduler.matching.arrays import Array
from scheduler.matching.book import digest
from scheduler.matching.cells import SLOTS
from scheduler.matching.clear import clear, follow
from scheduler.matching.matches import Matches
from scheduler.matching.synthetic import Plan, make
from scheduler.models import ClearingPrice, Round
from scheduler.seating import Seated
from scheduler.snapshots import Snapshot

log = logging.getLogger(__name__)

_QUIET: Final = timedelta(minutes=1)
"""Rounds that match nothing are written down no more often than this."""

_NO_PRICES: Final = np.zeros(len(SLOTS))

FOLLOWED: Final = Followed()
"""The book of this process, if it is the worker that clears."""


def clear_market(*, now: datetime, followed: Followed | None = None) -> int:
    """One round; returns how many jobs it placed. Call it from one process at a time.

    A worker that clears round after round keeps its book in `followed`.
    """
    with _undisturbed():
        try:
            if followed is None:
                return _clear_market(snapshots.read(now), {}, now)
            return _clear_market(followed.read(now), followed.ladders, now)
        except BaseException:
            if followed is not None:
                followed.forget()
            raise


def warm_up() -> None:
    """Loads the engine's compiled loops, which takes a second, or half a minute where they have to
    be compiled."""
    clear(make(Plan(jobs=4, nodes=4, seed=0)))
    displacing.warm_up()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without the collector of cycles: a round makes a million objects and no cycle among them, and
    looking through them again and again took half of its time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _clear_market(snapshot: Snapshot, ladders: dict[str, Array], now: datetime) -> int:
    """`ladders`: what balanced each node's cell in the round before, and then in this one."""
    if not snapshot.jobs:
        return 0
    nodes = [snapshots.name_of(row) for row in snapshot.rows]
    last = None
    if ladders and nodes:
        last = np.concatenate([ladders.get(node, _NO_PRICES) for node in nodes])
        last = last.reshape(-1, len(SLOTS))
    started = time.perf_counter()
    matches, balance = follow(snapshot.book, last)
    seconds = time.perf_counter() - started
    matches = replace(matches, seconds=seconds)
    placed = 0
    if snapshot.rows:
        seated = seating.seat(snapshot, matches, now=now)
        with ThreadPoolExecutor(1) as beside, transaction.atomic():
            raw = Aside(beside, partial(archive.packed, snapshot, matches))
            locks.hold(MARKET_LOCK)
            placed = _commit(snapshot, matches, seated, now=now, raw=raw)
    displacing.displace_market(snapshot, matches, now=now)
    explaining.tell(_cleared(snapshot, matches, seconds), now=now)
    ladders.clear()
    ladders.update(zip(nodes, balance, strict=True))
    return placed


def _cleared(snapshot: Snapshot, matches: Matches, seconds: float) -> Cleared:
    """The round as it is explained to those who got nothing."""
    return Cleared(
        book=snapshot.book, matches=matches, jobs=snapshot.jobs, wanted=snapshot.wanted,
        rows=snapshot.rows, standing=snapshot.standing, seconds=seconds, clear=clear,
    )  # fmt: skip


def _commit(
    snapshot: Snapshot, matches: Matches, seated: Seated, *, now: datetime,
    raw: Aside[bytes] | None = None,
) -> int:  # fmt: skip
    """How many jobs it places. `raw` is what `archive.packed` makes, begun on the way."""
    drafts = seating.still_good(seated, snapshot, now=now)
    last = Round.objects.order_by("-at").first()
    if not drafts and last is not None and now - last.at < _QUIET:
        return 0
    round = Round.objects.create(
        id=uuid7(),
        at=now,
        jobs=len(snapshot.jobs),
        gpus=int(snapshot.book.node_gpus.sum()),
        matched_jobs=len(drafts),
        matched_gpus=sum(draft.gpus for draft in drafts),
        welfare=float(matches.welfare),
        bound=float(matches.bound),
        make_whole=float(matches.make_whole),
        seconds=matches.seconds,
        seed=snapshot.book.params.seed,
        book_sha256=digest(snapshot.book),
    )
    placed = leases.place_drafts(drafts, round=round, now=now, aside=raw)
    kept = {draft.job.id for draft in placed}
    _publish(round, [draft.placement for draft in placed], now)
    archive.keep(round, snapshot, matches, kept, raw)
    return len(kept)


def _publish(round: Round, placements: Sequence[Placement], now: datetime) -> None:
    """What this round's GPUs were let for, cell by cell: a mean where sites are pooled."""
    let: dict[tuple[str, str, int], tuple[int, int]] = {}
    for placement in placements:
        for seat, cell in zip(placement.seats, placement.cells, strict=True):
            gpus = len(seat.gpus)
            key = placement.gpu_class, cell, 1 << (gpus.bit_length() - 1)
            paid, of = let.get(key, (0, 0))
            let[key] = paid + seat.price_micros * gpus, of + gpus
    if let:
        classes, cells, slots = zip(*let, strict=True)
        bulk.write(
            ClearingPrice,
            {
                "gpu_class": classes, "cell": cells, "slot": slots,
                "price_micros": [-(-paid // gpus) for paid, gpus in let.values()],
                "gpus": [gpus for _, gpus in let.values()],
            },
            {"round_id": round.pk, "at": now},
        )  # fmt: skip
    history.record(round)
