"""The table of money's ways as accounting stories: each row, and the account that ends where."""

from datetime import datetime
from uuid import uuid4

import pytest

from marketplace.core.errors import NotEnoughMoney
from marketplace.core.money import MICRO, accrued, charge, fee
from marketplace.ledger import services as ledger
from marketplace.ledger.services import (
    CASH,
    DISPUTES,
    FEES,
    PROCESSOR_FEES,
    Move,
    Ref,
    escrow,
    in_transit,
    payable,
    post,
    receivable,
    vat,
    wallet,
)

pytestmark = pytest.mark.django_db

BUYER, SUPPLIER, JOB, ASSIGNMENT, PAYMENT = uuid4(), uuid4(), uuid4(), uuid4(), uuid4()
TAKE_BPS = 800


def holds(**accounts: int) -> None:
    """Asserts what each account holds, in whole units of the currency; the rest is not asked."""
    named = {
        "cash": CASH, "fees": FEES, "wallet": wallet(BUYER), "escrow": escrow(JOB),
        "payable": payable(SUPPLIER), "in_transit": in_transit(SUPPLIER),
        "processor_fees": PROCESSOR_FEES, "disputes": DISPUTES, "vat": vat("DE"),
        "debt_of_buyer": receivable(BUYER),
    }  # fmt: skip
    assert {name: ledger.balance(named[name]) for name in accounts} == {
        name: amount * MICRO for name, amount in accounts.items()
    }
    assert ledger.imbalance() == 0
    assert ledger.audit() == {}


def move(kind: str, debit: Ref, credit: Ref, units: int, period: str = "") -> Move:
    return Move(kind, debit, credit, units * MICRO, JOB, period)


@pytest.fixture
def topped_up(now: datetime) -> None:
    post([Move("top_up", CASH, wallet(BUYER), 100 * MICRO, PAYMENT)], now=now)


@pytest.mark.usefixtures("topped_up")
def test_a_job_is_escrowed_used_and_at_rest_gives_the_rest_back(now: datetime) -> None:
    post([move("escrow", wallet(BUYER), escrow(JOB), 20)], now=now)
    holds(cash=-100, wallet=80, escrow=20)
    post(
        [
            move("usage", escrow(JOB), payable(SUPPLIER), 11, "60"),
            move("fee", escrow(JOB), FEES, 1, "60"),
        ],
        now=now,
    )
    holds(escrow=8, payable=11, fees=1)
    post([move("escrow_back", escrow(JOB), wallet(BUYER), 8)], now=now)
    holds(cash=-100, wallet=88, escrow=0, payable=11, fees=1)


@pytest.mark.usefixtures("topped_up")
def test_however_a_job_is_metered_the_ledger_ends_the_same(now: datetime) -> None:
    price, gpus, until = 1_234_567, 3, 7_211
    post([move("escrow", wallet(BUYER), escrow(JOB), 50)], now=now)
    for cuts in ([until], [60, 120, 3_600, until], [1, 2, 7_210, until]):
        subject, since, moves = uuid4(), 0, []
        for cut in cuts:
            gross = charge(price, gpus, since, cut)
            ours = fee(price, gpus, since, cut, take_bps=TAKE_BPS)
            for kind, to, amount in (
                ("usage", payable(SUPPLIER), gross - ours), ("fee", FEES, ours),
            ):  # fmt: skip
                if amount:
                    moves.append(Move(kind, escrow(JOB), to, amount, subject, str(cut)))
            since = cut
        before = ledger.balances([escrow(JOB), FEES])
        post(moves, now=now)
        after = ledger.balances([escrow(JOB), FEES])
        total = accrued(price, gpus, until)
        assert before[escrow(JOB)] - after[escrow(JOB)] == total
        assert after[FEES] - before[FEES] == total * TAKE_BPS // 10_000


@pytest.mark.usefixtures("topped_up")
def test_an_escrow_pays_never_more_than_it_holds(now: datetime) -> None:
    post([move("escrow", wallet(BUYER), escrow(JOB), 2)], now=now)
    with pytest.raises(NotEnoughMoney, match="escrow of"):
        post([move("usage", escrow(JOB), payable(SUPPLIER), 3, "60")], now=now)
    holds(wallet=98, escrow=2, payable=0)


@pytest.mark.usefixtures("topped_up")
def test_no_progress_is_credited_by_the_one_at_fault_then_by_the_platform(now: datetime) -> None:
    post([move("escrow", wallet(BUYER), escrow(JOB), 10)], now=now)
    post(
        [
            move("usage", escrow(JOB), payable(SUPPLIER), 9, "60"),
            move("fee", escrow(JOB), FEES, 1, "60"),
        ],
        now=now,
    )
    post(
        [
            move("no_progress", payable(SUPPLIER), wallet(BUYER), 9),
            move("no_progress_fee", FEES, wallet(BUYER), 1),
        ],
        now=now,
    )
    holds(wallet=100, escrow=0, payable=0, fees=0)


def test_a_seller_below_the_ask_is_made_whole_out_of_the_fees(now: datetime) -> None:
    post([move("make_whole", FEES, payable(SUPPLIER), 2)], now=now)
    holds(fees=-2, payable=2)


@pytest.mark.usefixtures("topped_up")
def test_a_payout_goes_through_transit_to_the_bank(now: datetime) -> None:
    post([move("usage", wallet(BUYER), payable(SUPPLIER), 60)], now=now)
    post([move("payout", payable(SUPPLIER), in_transit(SUPPLIER), 60)], now=now)
    holds(payable=0, in_transit=60)
    post([move("payout_paid", in_transit(SUPPLIER), CASH, 60)], now=now)
    holds(cash=-40, in_transit=0, wallet=40)


@pytest.mark.usefixtures("topped_up")
def test_a_payout_that_bounces_is_payable_again(now: datetime) -> None:
    post([move("usage", wallet(BUYER), payable(SUPPLIER), 60)], now=now)
    post([move("payout", payable(SUPPLIER), in_transit(SUPPLIER), 60)], now=now)
    post([move("payout_bounced", in_transit(SUPPLIER), payable(SUPPLIER), 60)], now=now)
    holds(cash=-100, payable=60, in_transit=0)


@pytest.mark.usefixtures("topped_up")
def test_card_costs_and_tax_have_accounts_of_their_own(now: datetime) -> None:
    post(
        [
            move("card_cost", PROCESSOR_FEES, CASH, 3),
            move("tax", wallet(BUYER), vat("DE"), 19),
        ],
        now=now,
    )
    holds(cash=-97, processor_fees=-3, wallet=81, vat=19)


@pytest.mark.usefixtures("topped_up")
def test_a_dispute_takes_what_the_wallet_has_and_the_rest_is_owed(now: datetime) -> None:
    post([move("escrow", wallet(BUYER), escrow(JOB), 70)], now=now)
    post(
        [
            move("dispute", wallet(BUYER), DISPUTES, 30),
            move("dispute_owed", receivable(BUYER), DISPUTES, 70),
        ],
        now=now,
    )
    holds(wallet=0, escrow=70, disputes=100, debt_of_buyer=-70)
    post([move("repaid", escrow(JOB), receivable(BUYER), 70)], now=now)
    holds(escrow=0, debt_of_buyer=0)
