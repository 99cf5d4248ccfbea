"""Somebody else at work while a round commits: heartbeats, offers that change, offers taken.

    python -m benchmarks.market.writer NUMBER SEED

Says "at work", goes on until its standard input ends, and prints what it did.
"""

import json
import os
import random
import select
import sys

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")
django.setup()

from django.db import transaction
from django.utils import timezone

from buyers.models import Job
from marketplace import locks
from marketplace.core.money import gross_ask
from scheduler import book, leases
from scheduler.drafting import Placement
from scheduler.seats import seated
from suppliers import sessions
from suppliers.models import Node, Offer

_BEATS = 500
"""Nodes heard of in one flush: 10,000 of them beat each ten seconds, and are flushed each two."""


def main() -> int:
    number, seed = int(sys.argv[1]), int(sys.argv[2])
    chance = random.Random(seed * 100 + number)
    nodes = list(Node.objects.values_list("pk", flat=True))
    offers = list(Offer.objects.open().values_list("pk", flat=True))
    work = (
        lambda: _beat(chance.sample(nodes, min(_BEATS, len(nodes)))),
        lambda: _change(chance.choice(offers)),
        lambda: _take(chance.choice(offers)),
    )[number % 3]
    print("at work", flush=True)
    done = tried = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        done += work()
        tried += 1
    print(json.dumps({"kind": ("beat", "change", "take")[number % 3], "done": done, "of": tried}))
    return 0


def _beat(nodes: list[object]) -> bool:
    now = timezone.now()
    sessions.flush_seen(dict.fromkeys(nodes, now))  # type: ignore[arg-type]
    return True


@transaction.atomic
def _change(pk: object) -> bool:
    """A new price is a new offer."""
    now = timezone.now()
    offer = Offer.objects.select_for_update(no_key=True).get(pk=pk)
    if offer.state != "open":
        return False
    offer.advance("close", now=now)
    Offer.objects.create(
        node_id=offer.node_id, ask_micros=offer.ask_micros + 1, notice_s=offer.notice_s,
        state="open", state_since=now,
    )  # fmt: skip
    return True


@transaction.atomic
def _take(pk: object) -> bool:
    """The first waiting job takes what is free of an offer, as by its quote."""
    now = timezone.now()
    locks.hold(leases.MARKET_LOCK)
    offer = Offer.objects.open().select_related("node__site").filter(pk=pk).first()
    if offer is None:
        return False
    free = tuple(book.free_gpus(offer.node.pk, offer.node.gpus.all()[0].gpu_class))
    waiting = Job.objects.queued().select_for_update(no_key=True, skip_locked=True)
    job = waiting.filter(gpus_min__lte=len(free)).order_by("queued_at").first() if free else None
    if job is None:
        return False
    price = gross_ask(offer.ask_micros, take_bps=800)
    seat = seated(offer, free[: job.gpus_min], price)
    return bool(leases.place([Placement(job, free[0].gpu_class, 0, (seat,))], round=None, now=now))


if __name__ == "__main__":
    sys.exit(main())
