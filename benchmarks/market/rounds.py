"""One round in a database of its own, phase by phase; what `commit` runs, once for each durability.

    python -m benchmarks.market.rounds '{"leases": 1000, "nodes": 5000, "writers": 8, "seed": 0}'

Prints its figures as one line of JSON. The database and all else come from the environment.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")
django.setup()

from django.conf import settings
from django.db import connection, transaction
from django.db.models import ForeignKey
from django.utils import timezone

from benchmarks.market import stock
from benchmarks.market.clocks import Clock
from benchmarks.market.harness import compile_engine
from marketplace import locks
from marketplace.ledger import services as ledger
from marketplace.ledger.models import Transfer
from marketplace.models import StateChange
from scheduler import clearing, drafting, explaining, leases, seating, snapshots
from scheduler.following import Followed
from scheduler.matching.synthetic import Plan, make
from scheduler.models import Assignment, Lease, LeasedGpu, Round

_MODELS = (Lease, Assignment, LeasedGpu, Transfer, StateChange)
_TABLES = tuple(model._meta.db_table for model in _MODELS)
_ONE_BY_ONE = 100


def main() -> int:
    told = json.loads(sys.argv[1])
    compile_engine()
    now = timezone.now()
    book = make(Plan(jobs=told["leases"] + _ONE_BY_ONE, nodes=told["nodes"], seed=told["seed"]))
    stock.fill(book, take_bps=settings.POLICY.take_bps, now=now)
    stock.settle()
    figures: dict[str, Any] = {}
    figures["one_by_one_s"] = _one_by_one(now)
    connection.ensure_connection()
    clock = _clock()
    followed = Followed()
    with clock.phase("read anew"):
        followed.read(now)
    clock.watch(followed, "read", "read")
    writers = [_writer(number, told) for number in range(told["writers"])]
    began = time.perf_counter()
    if told.get("profile"):
        import cProfile

        profile = cProfile.Profile()
        profile.enable()
    with clock.phase("rest"):
        clearing.clear_market(now=now, followed=followed)
    if told.get("profile"):
        profile.disable()
        profile.dump_stats(told["profile"])
    figures["wall_s"] = time.perf_counter() - began
    figures["others"] = [json.loads(writer.communicate()[0] or "{}") for writer in writers]
    figures["phases"] = {name: asdict(spent) for name, spent in clock.phases.items()}
    figures |= _come_of_it()
    figures["bare_s"] = _bare()
    figures["indexed_s"] = _bare("INCLUDING ALL")
    figures["keyed_s"] = _bare("INCLUDING ALL", keys=_keys())
    print(json.dumps(figures))
    return 0


def _clock() -> Clock:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        clock = Clock(cursor.fetchone()[0])
    clock.watch(clearing, "follow", "clear")
    clock.watch(seating, "seat", "seat")
    clock.watch(drafting, "made", "draft")
    clock.watch(seating, "still_good", "look again")
    clock.watch(drafting, "fund", "fund")
    clock.watch(clearing, "_commit", "write")
    clock.watch(connection, "_commit", "commit")
    clock.watch(connection, "run_and_clear_commit_hooks", "push")
    clock.watch(explaining, "tell", "explain")
    return clock


def _one_by_one(now: Any) -> float:
    """Seconds for one match in a transaction of its own, as peers do it."""
    snapshot = snapshots.read(now)
    matches = clearing.clear(snapshot.book)
    seated = seating.seat(snapshot, matches, now=now)
    placements = [draft.placement for _, draft in seated.drafts[:_ONE_BY_ONE]]
    began = time.perf_counter()
    for placement in placements:
        with transaction.atomic():
            locks.hold(leases.MARKET_LOCK)
            leases.place([placement], round=None, now=now)
    return (time.perf_counter() - began) / len(placements)


def _come_of_it() -> dict[str, Any]:
    lets = list(LeasedGpu.objects.filter(released_at=None).values_list("gpu", flat=True))
    round = Round.objects.order_by("-matched_jobs").first()
    with connection.cursor() as cursor:
        sizes = {}
        for table in _TABLES:
            cursor.execute(f"SELECT count(*), sum(pg_column_size(t.*)) FROM {table} t")
            sizes[table] = cursor.fetchone()
    return {
        "leases": Lease.objects.filter(round=round).count() if round else 0,
        "jobs": round.jobs if round else 0,
        "let_twice": len(lets) - len(set(lets)),
        "ledger_off": len(ledger.audit()) + abs(ledger.imbalance()),
        "rows": sum(int(count) for count, _ in sizes.values()),
        "bytes": sum(int(size or 0) for _, size in sizes.values()),
    }


def _bare(like: str = "", keys: Sequence[str] = ()) -> float:
    """Seconds for COPY of the very same rows into bare tables, or into such with the indexes and
    checks of the real ones, and with foreign keys, in one transaction: what no market can be faster
    than."""
    with connection.cursor() as cursor:
        data: dict[str, bytes] = {}
        for table in _TABLES:
            with cursor.copy(f"COPY {table} TO STDOUT") as copy:
                data[table] = b"".join(bytes(block) for block in copy)
            cursor.execute(f"DROP TABLE IF EXISTS bare_{table}")
            cursor.execute(f"CREATE TABLE bare_{table} (LIKE {table} {like})")
        for key in keys:
            cursor.execute(key)
        began = time.perf_counter()
        with transaction.atomic():
            for table, text in data.items():
                with cursor.copy(f"COPY bare_{table} FROM STDIN") as copy:
                    copy.write(text)
        return time.perf_counter() - began


def _keys() -> list[str]:
    """Foreign keys as anybody would declare them; ours are looked up set by set instead
    (`scheduler.migrations.0020_references`)."""
    return [
        f"ALTER TABLE bare_{model._meta.db_table} ADD FOREIGN KEY ({field.column})"
        f" REFERENCES {field.related_model._meta.db_table}"
        for model in _MODELS
        for field in model._meta.concrete_fields
        if isinstance(field, ForeignKey)
    ]


def _writer(number: int, told: dict[str, Any]) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-m", "benchmarks.market.writer", str(number), str(told["seed"])]
    writer = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    writer.stdout.readline()  # it says when it is at work
    return writer


if __name__ == "__main__":
    sys.exit(main())
