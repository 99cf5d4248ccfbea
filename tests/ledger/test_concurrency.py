"""Many at once on one database: no deadlock, nothing lost, nothing twice."""

import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from django.db import connection, transaction

from marketplace.core.errors import NotEnoughMoney
from marketplace.ledger import services as ledger
from marketplace.ledger.models import Account, Transfer
from marketplace.ledger.services import CASH, FEES, Move, escrow, payable, post, wallet

pytestmark = pytest.mark.django_db(transaction=True)

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def at_once(works: list[Callable[[], None]]) -> None:
    """Runs each in a thread with its own connection, all released together."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        try:
            barrier.wait()
            work()
        except BaseException as error:  # noqa: BLE001 (told below)
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=[work]) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_same_batch_from_many_sides_is_posted_once() -> None:
    moves = [Move("top_up", CASH, wallet(uuid4()), 10, uuid4()) for _ in range(20)]
    news: list[int] = []

    def deliver() -> None:
        shuffled = random.sample(moves, len(moves))
        with transaction.atomic():
            news.append(post(shuffled, now=NOW))

    at_once([deliver] * 8)
    assert sum(news) == 20
    assert Transfer.objects.count() == 20
    assert ledger.balance(CASH) == -200
    assert ledger.audit() == {}


def test_a_wallet_is_spent_once_however_many_want_it() -> None:
    org = uuid4()
    with transaction.atomic():
        post([Move("top_up", CASH, wallet(org), 1_000, uuid4())], now=NOW)
    outcomes: list[bool] = []

    def spend() -> None:
        job = uuid4()
        try:
            with transaction.atomic():
                post([Move("escrow", wallet(org), escrow(job), 300, job)], now=NOW)
            outcomes.append(True)
        except NotEnoughMoney:
            outcomes.append(False)

    at_once([spend] * 8)
    assert sorted(outcomes) == [False] * 5 + [True] * 3
    assert ledger.balance(wallet(org)) == 100
    assert ledger.imbalance() == 0


def test_circles_of_transfers_in_any_order_neither_deadlock_nor_lose() -> None:
    """Everybody pays everybody, in batches over shuffled accounts, some of them new."""
    orgs = [UUID(int=n) for n in range(12)]
    with transaction.atomic():
        post([Move("top_up", CASH, wallet(org), 10**9, org) for org in orgs[:6]], now=NOW)

    def pay(seed: int) -> Callable[[], None]:
        dice = random.Random(seed)

        def work() -> None:
            for turn in range(25):
                moves = []
                for place in range(6):
                    one, other = dice.sample(orgs[:6], 2)
                    moves.append(
                        Move("pay", wallet(one), payable(other), dice.randint(1, 999),
                             UUID(int=seed), f"{turn}.{place}")
                    )  # fmt: skip
                    new = dice.choice(orgs)
                    moves.append(
                        Move("fee", payable(other), FEES if place % 2 else wallet(new), 1,
                             UUID(int=seed), f"{turn}.{place}")
                    )  # fmt: skip
                with transaction.atomic():
                    post(moves, now=NOW)

        return work

    at_once([pay(seed) for seed in range(8)])
    assert Transfer.objects.count() == 6 + 8 * 25 * 12
    assert ledger.imbalance() == 0
    assert ledger.audit() == {}


def test_new_accounts_made_by_many_at_once_are_made_once() -> None:
    owners = [uuid4() for _ in range(30)]

    def make(seed: int) -> Callable[[], None]:
        def work() -> None:
            moves = [
                Move("top_up", CASH, wallet(owner), 1, owner, str(seed))
                for owner in random.Random(seed).sample(owners, 20)
            ]
            with transaction.atomic():
                post(moves, now=NOW)

        return work

    at_once([make(seed) for seed in range(8)])
    wallets = Account.objects.filter(kind="wallet")
    assert wallets.count() == len(set(wallets.values_list("owner", flat=True)))
    assert ledger.balance(CASH) == -160


def test_a_decision_on_a_held_balance_is_not_overtaken() -> None:
    org = uuid4()
    with transaction.atomic():
        post([Move("top_up", CASH, wallet(org), 1_000, uuid4())], now=NOW)
    taken: list[int] = []

    def take_half() -> None:
        subject = uuid4()
        with transaction.atomic():
            held = ledger.hold([wallet(org), FEES])
            half = held[wallet(org)] // 2
            post([Move("half", wallet(org), FEES, half, subject)], now=NOW)
            taken.append(half)

    at_once([take_half] * 6)
    assert sorted(taken, reverse=True) == [500, 250, 125, 62, 31, 16]
    assert ledger.balance(wallet(org)) == 1_000 - sum(taken)
