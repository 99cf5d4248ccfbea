"""Workers killed with -9 in the middle of posting: what is delivered again is written once."""

import json
import random
import subprocess
import sys

import pytest
from django.db import connection

from marketplace.ledger import services as ledger
from marketplace.ledger.models import Transfer
from marketplace.ledger.services import CASH, FEES
from tests.ledger.poster import deliver

pytestmark = pytest.mark.django_db(transaction=True)

MOVES, ROUNDS, WORKERS = 300, 4, 3


def test_killed_workers_neither_lose_nor_double_a_transfer() -> None:
    database = {
        name: connection.settings_dict[name]
        for name in ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT")
    }
    dice = random.Random(24)
    for turn in range(ROUNDS):
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.ledger.poster", json.dumps(database), str(MOVES),
                 str(turn * WORKERS + number)],
                stdout=subprocess.PIPE, text=True,
            )
            for number in range(WORKERS)
        ]  # fmt: skip
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdout is not None
            # Somewhere in the middle: they post as fast as they can.
            for _ in range(dice.randint(1, 8)):
                assert worker.stdout.readline() == "posted\n"
            worker.kill()
            worker.wait()
            worker.stdout.close()
        assert ledger.imbalance() == 0
        assert ledger.audit() == {}
    before = Transfer.objects.count()
    assert before
    new = deliver(list(range(MOVES)))
    assert before + new == Transfer.objects.count() == 3 * MOVES
    assert ledger.balance(CASH) == -1_000 * MOVES
    assert ledger.balance(FEES) == 100 * MOVES
    assert ledger.audit() == {}
