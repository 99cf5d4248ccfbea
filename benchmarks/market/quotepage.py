"""Quotes on the quote page's way, on a real PostgreSQL with so many open offers: run by `quote`.

    python -m benchmarks.market.quotepage NODES TIMES

Prints the milliseconds of each, wall and our own processor's, and how many queries each took.
"""

import json
import os
import sys
import time

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")
django.setup()

from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from benchmarks.market import stock
from buyers.models import Dataset
from marketplace.core.specs import parse
from marketplace.models import Org
from scheduler import quoting
from scheduler.matching.synthetic import Plan, make

_GPUS = (1, 2, 4, 8, 16)


def main() -> int:
    nodes, times = int(sys.argv[1]), int(sys.argv[2])
    now = timezone.now()
    stock.fill(make(Plan(1, nodes, 0)), take_bps=settings.POLICY.take_bps, now=now)
    stock.settle()
    org = Org.objects.get(name="Buyer 0")
    script = Dataset.objects.create(
        org=org, name="project", version=1, created_by="me", created_at=now, committed_at=now,
        manifest=[{"path": "main.py", "bytes": 3, "sha256": "a" * 64}], sha256="b" * 64, bytes=3,
        prefix="datasets/x/",
    )  # fmt: skip
    asked = [
        parse({"recipe": "script", "script": str(script.pk), "parameters": {"entry": "main.py"},
               "budget": "5000", "memory_gib": 10, "hours": 2, "gpus": gpus,
               "level": "site" if gpus > 1 else "node"})
        for gpus in _GPUS
    ]  # fmt: skip
    quoting.quote(org, asked[0], now=now)
    walls, own, queries = [], [], set()
    for number in range(times):
        began, worked = time.perf_counter(), time.process_time()
        quoting.quote(org, asked[number % len(asked)], now=timezone.now())
        walls.append(1e3 * (time.perf_counter() - began))
        own.append(1e3 * (time.process_time() - worked))
    for request in asked:
        with CaptureQueriesContext(connection) as counted:
            quote = quoting.quote(org, request, now=timezone.now())
        queries.add(len(counted))
    told = {"walls": walls, "own": own, "queries": sorted(queries), "shown": len(quote.options)}
    print(json.dumps(told | {"more": quote.more_fit}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
