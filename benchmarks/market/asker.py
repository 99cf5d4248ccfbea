"""Asks for quotes on the quote page's way; what `quotepage` runs.

    python -m benchmarks.market.asker NODES TIMES MOVED

Prints what it measured as one line of JSON. The database and all else come from the environment.
"""

import json
import os
import random
import sys
import time

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")
django.setup()

import numpy as np
from django.conf import settings
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from benchmarks.market import stock
from buyers.models import Dataset, Quote
from marketplace.asgi import warm_up
from marketplace.core.specs import parse
from marketplace.models import Org
from scheduler import quoting
from scheduler.matching.synthetic import Plan, make
from suppliers.models import Offer

_GPUS = (1, 2, 4, 8, 16)


def main() -> int:
    nodes, times, moved = map(int, sys.argv[1:])
    now = timezone.now()
    settings.ALLOWED_HOSTS = ["testserver"]
    stock.fill(make(Plan(1, nodes, 0)), take_bps=settings.POLICY.take_bps, now=now)
    stock.settle()
    org = Org.objects.get(name="Buyer 0")
    client = Client()
    client.force_login(org.members.get())
    warm_up()  # as the site does when it starts
    began = time.perf_counter()
    pages = [_quoted(org, gpus) for gpus in _GPUS]
    first = time.perf_counter() - began
    spent = []
    for number in range(times):
        _move(moved, random.Random(number))
        spent.append(_asked(client, pages[number % len(pages)]))
    with CaptureQueriesContext(connection) as counted:
        last = _asked(client, pages[-1])
    walls, own = (1e3 * np.array(column) for column in zip(*spent, last, strict=True))
    quote = Quote.objects.order_by("created_at").last()
    assert quote is not None
    found = {
        "first": 1e3 * first, "wall": np.percentile(walls, [50, 95]).tolist(),
        "own": float(np.median(own)), "queries": len(counted), "shown": len(quote.options),
        "more": quote.more_fit,
    }  # fmt: skip
    print(json.dumps(found))
    return 0


def _quoted(org: Org, gpus: int) -> str:
    """A first quote; the address that asks for it again."""
    now = timezone.now()
    script, _ = Dataset.objects.get_or_create(
        org=org, name="project", version=1, defaults={
            "created_by": "me", "created_at": now, "committed_at": now, "bytes": 3,
            "manifest": [{"path": "main.py", "bytes": 3, "sha256": "a" * 64}], "sha256": "b" * 64,
            "prefix": "datasets/x/",
        },
    )  # fmt: skip
    level = "site" if gpus > 1 else "node"
    asked = {
        "recipe": "script", "script": str(script.pk), "parameters": {"entry": "main.py"},
        "budget": "5000", "memory_gib": 10, "hours": 2, "gpus": gpus, "level": level,
    }  # fmt: skip
    return f"/buy/quotes/{quoting.quote(org, parse(asked), now=now).pk}/again/"


def _move(count: int, draw: random.Random) -> None:
    """Some suppliers ask a hundredth more."""
    ids = draw.sample(list(Offer.objects.values_list("pk", flat=True)), count)
    for offer in Offer.objects.filter(pk__in=ids):
        offer.ask_micros = offer.ask_micros * 101 // 100
        offer.save(update_fields=["ask_micros"])


def _asked(client: Client, address: str) -> tuple[float, float]:
    """(seconds, seconds of our processor) until the page has come."""
    began, worked = time.perf_counter(), time.process_time()
    page = client.post(address, follow=True)
    if page.status_code != 200:
        raise RuntimeError(f"{address} answers {page.status_code}")
    return time.perf_counter() - began, time.process_time() - worked


if __name__ == "__main__":
    sys.exit(main())
