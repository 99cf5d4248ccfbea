"""Asks for quotes on the quote page's way; what `quotepage` runs.

    python -m benchmarks.market.asker NODES TIMES MOVED

Prints what it measured as one line of JSON. The database and all else come from the environment.
"""

import json
import os
import random
import sys
import time
from dataclasses import asdict
from datetime import datetime
from typing import Any

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
from buyers.models import Artifact, Dataset, Quote
from marketplace.asgi import warm_up
from marketplace.core.shapes import BaseShape
from marketplace.core.specs import parse
from marketplace.models import Org
from scheduler import quoting
from scheduler.matching.synthetic import Plan, make
from suppliers.models import Benchmark, Node, Offer

_GPUS = (1, 2, 4, 8, 16)
_SHAPE = {"vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536,
          "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
          "tie_word_embeddings": True, "dtype": "bfloat16"}  # fmt: skip
"""SmolLM2-135M's."""


def main() -> int:
    nodes, times, moved = map(int, sys.argv[1:])
    now = timezone.now()
    settings.ALLOWED_HOSTS = ["testserver"]
    stock.fill(make(Plan(1, nodes, 0)), take_bps=settings.POLICY.take_bps, now=now)
    _measure(now)
    stock.settle()
    org = Org.objects.get(name="Buyer 0")
    client = Client()
    client.force_login(org.members.get())
    warm_up()  # as the site does when it starts
    began = time.perf_counter()
    pages = [
        _quoted(org, asked) for gpus in _GPUS for asked in (_script(org, gpus), _tuning(org, gpus))
    ]
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
        "own": np.percentile(own, [50, 95]).tolist(), "queries": len(counted), "shown": len(quote.options),
        "more": quote.more_fit,
    }  # fmt: skip
    print(json.dumps(found))
    return 0


def _measure(now: datetime) -> None:
    """Each node has a speed of its own, as if it had passed a benchmark."""
    draw, nodes = random.Random(0), Node.objects.order_by("pk").values_list("pk", flat=True)
    Benchmark.objects.bulk_create(
        [
            Benchmark(node_id=node, asked_at=now, finished_at=now, passed=True, task={},
                      tflops=draw.uniform(100, 900))
            for node in nodes
        ],
        2000,
    )  # fmt: skip


def _quoted(org: Org, asked: dict[str, Any]) -> str:
    """A first quote; the address that asks for it again."""
    return f"/buy/quotes/{quoting.quote(org, parse(asked), now=timezone.now()).pk}/again/"


def _script(org: Org, gpus: int) -> dict[str, Any]:
    """A job whose buyer says how long it takes."""
    script, _ = Dataset.objects.get_or_create(
        org=org, name="project", version=1, defaults={
            "created_by": "me", "manifest": [{"path": "main.py", "bytes": 3, "sha256": "a" * 64}],
            **_folder(),
        },
    )  # fmt: skip
    return {
        "recipe": "script", "script": str(script.pk), "parameters": {"entry": "main.py"},
        "budget": "5000", "memory_gib": 10, "hours": 2, **_on(gpus),
    }  # fmt: skip


def _tuning(org: Org, gpus: int) -> dict[str, Any]:
    """A job whose time hangs on how fast each machine was measured to be."""
    names = ("config.json", "model.safetensors", "train.jsonl", "heldout.jsonl")
    folder = _folder() | {
        "manifest": [{"path": name, "bytes": 600, "sha256": "a" * 64} for name in names]
    }
    shape = asdict(BaseShape.from_config(_SHAPE))
    base, _ = Artifact.objects.get_or_create(
        name="base", defaults={"public": True, "shape": shape, **folder}
    )
    pairs, _ = Dataset.objects.get_or_create(
        org=org, name="pairs", version=1, defaults={"created_by": "me", "rows": 1000, **folder}
    )
    return {
        "recipe": "lora", "base": str(base.pk), "dataset": str(pairs.pk), "budget": "5000",
        "parameters": {"steps": 10_000, "batch_size": 16}, **_on(gpus),
    }  # fmt: skip


def _folder() -> dict[str, Any]:
    now = timezone.now()
    return {"created_at": now, "committed_at": now, "bytes": 2400, "sha256": "b" * 64,
            "prefix": "datasets/x/"}  # fmt: skip


def _on(gpus: int) -> dict[str, Any]:
    return {"gpus": gpus, "level": "site" if gpus > 1 else "node"}


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
