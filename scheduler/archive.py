"""The record of a round: kept with it, made public bit by bit, forgotten in the end.

1. With the round, in its transaction: its book and matches, raw, and their hashes (`keep`).
2. Seconds later, by a worker: the root over all its rows, and its curves; then its two files go
   into storage. Storage that is away is waited for: the rows stay until it is back (`publish`).
3. After a week: the files, and the key to the salts (`release`).
4. After some months the files are deleted; hashes, root, curves and prices stay (`forget`).
"""

import hashlib
import io
import logging
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import numpy as np
from django.conf import settings

from marketplace import bulk, storage
from marketplace.core.errors import Missing, Unavailable
from marketplace.core.money import MICRO
from scheduler.beside import Aside
from scheduler.matching import arrays, proofs
from scheduler.matching import book as books
from scheduler.matching import matches as results
from scheduler.matching.arrays import Array, Bools
from scheduler.matching.check import amounts
from scheduler.matching.curves import Crowd, Curve, Point, curves
from scheduler.matching.matches import Matches
from scheduler.matching.verify import DROPPED, Released
from scheduler.models import Round
from scheduler.numbering import salting_key
from scheduler.record_models import Record
from scheduler.snapshots import Snapshot

log = logging.getLogger(__name__)

BOOK: Final = "BOOK.npz"
MATCHES: Final = "MATCHES.npz"
CHECKED_UNASKED: Final = 4_000
"""Rounds of up to so many rows are checked when they are released: a second or so each."""


def packed(snapshot: Snapshot, matches: Matches) -> bytes:
    """A round's book and matches as they are kept if all matches are."""
    return _raw(_all_of(snapshot, matches, np.zeros(len(snapshot.jobs), bool)))


def keep(
    round: Round, snapshot: Snapshot, matches: Matches, kept: Collection[UUID],
    raw: Aside[bytes] | None = None,
) -> None:  # fmt: skip
    """Writes down a round's book and matches, and brings its figures to what was kept of these:
    the jobs of `kept`. `raw` is what `packed` makes, if it was begun before. In the round's
    transaction."""
    matched = np.flatnonzero(matches.level >= 0).tolist()
    dropped = np.zeros(len(snapshot.jobs), bool)
    dropped[[at for at in matched if snapshot.jobs[at].id not in kept]] = True
    if dropped.any():
        left = results.without(matches, dropped)
        came_to = amounts(snapshot.book, left)
        round.matched_jobs, round.matched_gpus = len(kept), int(left.gpus.sum())
        round.welfare, round.make_whole = came_to.welfare, came_to.make_whole
        round.save(update_fields=["matched_jobs", "matched_gpus", "welfare", "make_whole"])
    record = Record.objects.create(
        round=round,
        at=round.at,
        secret=snapshot.secret,
        matches_sha256=results.digest(matches),
        decided=float(matches.welfare),
        dropped_jobs=int(dropped.sum()),
    )
    whole = raw if not dropped.any() else None
    body = whole.result() if whole else _raw(_all_of(snapshot, matches, dropped))
    bulk.write_bytes(record, "raw", body)


def publish() -> int:
    """Makes roots and curves of new rounds, and puts their files into storage; how many."""
    for pk in list(Record.objects.unproven().values_list("pk", flat=True)):
        _prove(Record.objects.get(pk=pk))
    stored = 0
    for pk in list(Record.objects.unstored().values_list("pk", flat=True)):
        try:
            _store(Record.objects.get(pk=pk))
        except Unavailable as error:
            log.warning("the files of round %s and later ones wait: %s", pk, error)
            break
        stored += 1
    return stored


def release(*, now: datetime) -> int:
    """Makes public what is a week old; what isn't in storage yet is released once it is."""
    due = now - timedelta(seconds=settings.POLICY.release_s)
    found = Record.objects.filter(released_at=None, at__lte=due, raw=None).exclude(root="")
    small = found.filter(leaves__lte=CHECKED_UNASKED).update(released_at=now, wanted_at=now)
    return small + found.update(released_at=now)


def forget(*, now: datetime) -> int:
    """Deletes the files of old rounds; storage that is away is waited for."""
    old = now - timedelta(seconds=settings.POLICY.rounds_kept_s)
    found = list(Record.objects.filter(at__lte=old, forgotten_at=None, raw=None)[:1000])
    try:
        storage.delete(key for record in found for key in file_keys(record).values())
    except Unavailable as error:
        log.warning("old rounds stay a while: %s", error)
        return 0
    Record.objects.filter(pk__in=[record.pk for record in found]).update(forgotten_at=now)
    return len(found)


def released_at(record: Record) -> datetime:
    """When its files are public, or have become so."""
    return record.released_at or record.at + timedelta(seconds=settings.POLICY.release_s)


def file_keys(record: Record) -> dict[str, str]:
    """Where its two files lie, by their names."""
    prefix = storage.round_prefix(record.pk)
    files = {BOOK: record.book_file, MATCHES: record.matches_file}
    return {name: storage.file_key(prefix, sha256) for name, sha256 in files.items()}


def files(record: Record) -> dict[str, dict[str, str | int]] | None:
    """Its two files with URLs that read them for some minutes; None unless they can be had."""
    if record.released_at is None or record.forgotten_at is not None:
        return None
    sizes = {BOOK: record.book_bytes, MATCHES: record.matches_bytes}
    return {
        name: {"url": _url(record, name), "sha256": key.rpartition("/")[2], "bytes": sizes[name]}
        for name, key in file_keys(record).items()
    }


def file_url(record: Record | None, name: str) -> str:
    """Where a file of a round can be read for some minutes. Raises Missing, with when it can."""
    if record is None or name not in (BOOK, MATCHES):
        raise Missing("there is no such file of this round")
    if record.forgotten_at is not None:
        raise Missing("the book and matches of this round are no longer kept")
    if record.released_at is None:
        raise Missing(
            f"the book and matches of this round are public from {released_at(record)} on"
        )
    return _url(record, name)


def salting_key_of(record: Record) -> str:
    """In hex; shown only with the book."""
    return salting_key(bytes(record.secret)).hex()


def read(raw: bytes) -> tuple[Released, Crowd]:
    """What was kept of a round, and whose its rows are."""
    named = arrays.unpack(io.BytesIO(raw))
    book = books.of_arrays({name: named[name] for name in books.SCHEMA})
    matches = results.of_arrays({name: named[name] for name in results.SCHEMA if name in named})
    crowd = Crowd(
        named["x_job_org"], named["x_node_org"],
        named["x_class_name"].tolist(), named["x_class_open"],
    )  # fmt: skip
    return Released(book, matches, named[DROPPED] > 0), crowd


def _all_of(snapshot: Snapshot, matches: Matches, dropped: Bools) -> dict[str, Array]:
    """All arrays of a round by name; and whose its rows are, which is never shown."""
    book = snapshot.book
    names = np.full(len(book.class_nvlink), "", "<U50")
    free = np.zeros(len(book.class_nvlink), bool)
    # What the rows of one class trade as, and whether anybody may have them, is the same.
    for number, at in zip(*np.unique(book.node_class, return_index=True), strict=True):
        stands = snapshot.rows[at].stands
        names[number] = stands.gpu_class
        free[number] = not (stands.own_org_only or stands.held_for)
    orgs: dict[str, int] = {}
    return {
        **book.as_arrays(),
        **matches.as_arrays(),
        DROPPED: dropped.astype("|i1"),
        "x_job_org": _numbered([str(job.org_id) for job in snapshot.jobs], orgs),
        "x_node_org": _numbered([row.stands.org for row in snapshot.rows], orgs),
        "x_class_name": names,
        "x_class_open": free,
    }


def _url(record: Record, name: str) -> str:
    return storage.signed_get(
        file_keys(record)[name],
        seconds=settings.POLICY.upload_url_s,
        filename=f"{record.at:%Y%m%dT%H%M%SZ}-{name}",
    )


def _numbered(orgs: Sequence[str], known: dict[str, int]) -> Array:
    """They are thousands of rows of few orgs."""
    for org in dict.fromkeys(orgs):
        known.setdefault(org, len(known))
    return np.array(list(map(known.__getitem__, orgs)), "<i4")


def _prove(record: Record) -> None:
    found, crowd = read(bytes(record.raw or b""))
    key = salting_key(bytes(record.secret))
    content = proofs.leaves(found.book, found.matches, found.dropped, key)
    Record.objects.filter(pk=record.pk, root="").update(
        root=proofs.Tree(content).root,
        leaves=len(content),
        curves=[_as_json(curve) for curve in curves(found.book, crowd)],
    )


def _as_json(curve: Curve) -> dict[str, Any]:
    def told(points: Sequence[Point]) -> list[dict[str, int]]:
        return [{"price": round(at.price * MICRO), "gpus": at.gpus} for at in points]

    both = {"supply": told(curve.supply), "demand": told(curve.demand)}
    return {"gpu_class": curve.gpu_class, **both}


def _store(record: Record) -> None:
    """Its two files, under their hashes: twice is once. Raises Unavailable."""
    found, _ = read(bytes(record.raw or b""))
    book = _packed(found.book.as_arrays())
    matches = _packed({**found.matches.as_arrays(), DROPPED: found.dropped.astype("|i1")})
    record.book_file, record.book_bytes = hashlib.sha256(book).hexdigest(), len(book)
    record.matches_file, record.matches_bytes = hashlib.sha256(matches).hexdigest(), len(matches)
    keys = file_keys(record)
    storage.put(keys[BOOK], book)
    storage.put(keys[MATCHES], matches)
    record.raw = None
    record.save(update_fields=["book_file", "book_bytes", "matches_file", "matches_bytes", "raw"])


def _packed(named: Mapping[str, Array]) -> bytes:
    file = io.BytesIO()
    arrays.write(file, named)
    return file.getvalue()


def _raw(named: Mapping[str, Array]) -> bytes:
    """Not compressed: a round has no time for that."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **named)
    return file.getvalue()
