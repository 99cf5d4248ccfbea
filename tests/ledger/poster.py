"""A worker to be killed: posts numbered moves over and over, and says when it has begun.

`python -m tests.ledger.poster '<database settings as JSON>' <moves> <seed>`
"""

import json
import random
import sys
from datetime import UTC, datetime
from uuid import UUID

from django.conf import settings

NOW = datetime(2026, 11, 24, tzinfo=UTC)
ORGS = [UUID(int=n) for n in range(5)]


def main() -> None:
    database, moves, seed = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    settings.configure(
        DATABASES={"default": database}, INSTALLED_APPS=["marketplace.ledger"], USE_TZ=True
    )
    import django

    django.setup()
    dice = random.Random(seed)
    print("ready", flush=True)  # noqa: T201 (the test reads it)
    while True:
        deliver(dice.sample(range(moves), 5))
        print("posted", flush=True)  # noqa: T201


def deliver(numbers: list[int]) -> int:
    """Posts the moves with these numbers in one transaction; returns how many were new."""
    from django.db import transaction

    from marketplace.ledger.services import CASH, FEES, Move, payable, post, wallet

    moves = []
    for number in numbers:
        org = ORGS[number % len(ORGS)]
        subject = UUID(int=1_000 + number)
        moves.append(Move("top_up", CASH, wallet(org), 1_000, subject))
        moves.append(Move("usage", wallet(org), payable(ORGS[-number % len(ORGS)]), 900, subject))
        moves.append(Move("fee", wallet(org), FEES, 100, subject))
    with transaction.atomic():
        return post(moves, now=NOW)


if __name__ == "__main__":
    main()
