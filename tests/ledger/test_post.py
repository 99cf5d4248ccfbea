"""Posting: all or none, once, never below zero, and the sum stays 0."""

from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest
from django.db import DataError, transaction
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.core.errors import NotEnoughMoney
from marketplace.ledger import services as ledger
from marketplace.ledger.models import Account, Transfer
from marketplace.ledger.services import CASH, FEES, Move, escrow, payable, post, wallet

pytestmark = pytest.mark.django_db

ORG, JOB, TOP_UP = uuid4(), uuid4(), uuid4()


def top_up(amount: int, *, org: UUID = ORG, subject: UUID = TOP_UP) -> Move:
    return Move("top_up", CASH, wallet(org), amount, subject)


def test_a_transfer_takes_from_one_account_what_it_gives_another(now: datetime) -> None:
    assert post([top_up(100)], now=now) == 1
    assert ledger.balances([CASH, wallet(ORG), FEES]) == {CASH: -100, wallet(ORG): 100, FEES: 0}
    assert ledger.imbalance() == 0
    assert ledger.audit() == {}


def test_a_repeat_changes_nothing(now: datetime) -> None:
    post([top_up(100)], now=now)
    assert post([top_up(100), Move("escrow", wallet(ORG), escrow(JOB), 30, JOB)], now=now) == 1
    assert post([top_up(100)] * 3, now=now) == 0
    assert ledger.balance(wallet(ORG)) == 70
    assert Transfer.objects.count() == 2


def test_a_repeat_is_a_repeat_even_when_the_money_has_gone(now: datetime) -> None:
    to_escrow = Move("escrow", wallet(ORG), escrow(JOB), 100, JOB, "1")
    post([top_up(100)], now=now)
    post([to_escrow], now=now)
    assert post([to_escrow], now=now) == 0


@pytest.mark.parametrize(
    "altered",
    [
        Move("top_up", CASH, wallet(ORG), 101, TOP_UP),
        Move("top_up", CASH, wallet(uuid4()), 100, TOP_UP),
        Move("top_up", FEES, wallet(ORG), 100, TOP_UP),
    ],
)
def test_a_repeat_with_another_amount_or_other_accounts_is_loud(
    now: datetime, altered: Move
) -> None:
    post([top_up(100)], now=now)
    with pytest.raises(ledger.AlteredRepeat):
        post([altered], now=now)
    with pytest.raises(ledger.AlteredRepeat):
        post([top_up(100), altered], now=now)
    assert ledger.balance(CASH) == -100


def test_too_little_money_names_account_and_shortfall_and_leaves_nothing(now: datetime) -> None:
    post([top_up(1_500_000)], now=now)
    wanted = [
        Move("escrow", wallet(ORG), escrow(JOB), 2_000_000, JOB),
        Move("top_up", CASH, wallet(uuid4()), 5, uuid4()),
    ]
    with pytest.raises(NotEnoughMoney, match=rf"wallet of {ORG} holds 1\.50, 0\.50 too little"):
        post(wanted, now=now)
    # The caller's transaction is still good.
    assert Transfer.objects.count() == 1
    assert set(Account.objects.values_list("kind", flat=True)) == {"cash", "wallet"}
    assert ledger.balance(wallet(ORG)) == 1_500_000


def test_every_short_account_is_told_with_what_it_lacks(now: datetime) -> None:
    other = uuid4()
    post([top_up(10)], now=now)
    with pytest.raises(ledger.AccountShort) as caught:
        post(
            [
                Move("escrow", wallet(ORG), escrow(JOB), 11, JOB),
                Move("escrow", wallet(other), escrow(JOB), 5, JOB, "2"),
            ],
            now=now,
        )
    assert caught.value.short == {wallet(ORG): 1, wallet(other): 5}


def test_an_account_may_pass_on_what_it_gets_in_the_same_batch(now: datetime) -> None:
    assert (
        post(
            [
                Move("usage", escrow(JOB), payable(ORG), 100, JOB),
                Move("escrow", wallet(ORG), escrow(JOB), 100, JOB),
                top_up(100),
            ],
            now=now,
        )
        == 3
    )
    assert ledger.balances([wallet(ORG), escrow(JOB), payable(ORG)]) == {
        wallet(ORG): 0, escrow(JOB): 0, payable(ORG): 100,
    }  # fmt: skip


def test_the_platform_may_owe_itself(now: datetime) -> None:
    post([Move("make_whole", FEES, payable(ORG), 7, JOB)], now=now)
    assert ledger.balance(FEES) == -7


def test_an_empty_batch_is_no_work(now: datetime, django_assert_num_queries: object) -> None:
    with django_assert_num_queries(0):  # type: ignore[operator]
        assert post([], now=now) == 0


def test_a_batch_of_any_size_takes_the_same_few_queries(
    now: datetime, django_assert_num_queries: object
) -> None:
    def batch(size: int) -> list[Move]:
        return [top_up(10, org=uuid4(), subject=uuid4()) for _ in range(size)]

    # savepoint, find, make, find, lock, repeats, insert, release
    with django_assert_num_queries(8):  # type: ignore[operator]
        post(batch(2), now=now)
    with django_assert_num_queries(8):  # type: ignore[operator]
        post(batch(2_000), now=now)
    assert ledger.balance(CASH) == -20_020


@pytest.mark.django_db(transaction=True)
def test_money_moves_only_inside_a_transaction(now: datetime) -> None:
    with pytest.raises(RuntimeError, match="transaction of its cause"):
        post([top_up(1)], now=now)
    with pytest.raises(RuntimeError, match="transaction of its cause"):
        ledger.hold([CASH])


@pytest.mark.parametrize("amount", [0, -1, 2**63])
def test_a_move_of_nothing_less_or_too_much_is_no_move(amount: int) -> None:
    with pytest.raises(ValueError, match="1 to 2"):
        top_up(amount)


def test_a_move_needs_a_kind_and_two_accounts() -> None:
    with pytest.raises(ValueError, match="a-z"):
        Move("Top-up", CASH, wallet(ORG), 1, ORG)
    with pytest.raises(ValueError, match="two accounts"):
        Move("top_up", CASH, CASH, 1, ORG)


def test_kind_subject_and_period_together_make_the_id() -> None:
    def made(kind: str, subject: UUID, period: str) -> UUID:
        return Move(kind, CASH, FEES, 1, subject, period).id

    first = made("usage", JOB, "1")
    assert first == made("usage", JOB, "1")
    assert len({first, made("fee", JOB, "1"), made("usage", ORG, "1"), made("usage", JOB, "")}) == 4
    # Fixed for ever: another id would post every old move again.
    assert made("usage", UUID(int=1), "1") == UUID("356348bc-f48f-551d-8fc9-5e99eeeeabe8")


def test_a_balance_for_a_decision_is_held_until_the_transaction_ends(now: datetime) -> None:
    post([top_up(100)], now=now)
    held = ledger.hold([wallet(ORG), CASH, FEES])
    assert held == {wallet(ORG): 100, CASH: -100, FEES: 0}


def test_a_statement_tells_what_each_transfer_changed(now: datetime) -> None:
    post([top_up(100)], now=now)
    later = now + timedelta(minutes=1)
    post([Move("escrow", wallet(ORG), escrow(JOB), 30, JOB)], now=later)
    lines = ledger.statement(wallet(ORG))
    assert [(line.kind, line.change, line.reference) for line in lines] == [
        ("top_up", 100, TOP_UP), ("escrow", -30, JOB),
    ]  # fmt: skip
    assert sum(line.change for line in lines) == ledger.balance(wallet(ORG))
    assert list(ledger.statement(wallet(uuid4()))) == []
    assert [line.change for line in ledger.statement(CASH)] == [-100]


def test_a_country_has_one_account(now: datetime) -> None:
    assert ledger.vat("DE") == ledger.vat("DE") != ledger.vat("FR")
    with pytest.raises(ValueError, match="two capitals"):
        ledger.vat("Germany")


def test_an_overflow_is_refused_and_leaves_nothing(now: datetime) -> None:
    post([top_up(2**63 - 1)], now=now)
    with pytest.raises(DataError, match="out of range"), transaction.atomic():
        post([top_up(1, subject=uuid4())], now=now)
    assert ledger.balance(wallet(ORG)) == 2**63 - 1


_REFS = [CASH, FEES, *(make(UUID(int=n)) for make in (wallet, escrow, payable) for n in range(2))]
_MOVES = st.builds(
    lambda kind, ends, amount, subject, period: Move(
        kind, _REFS[ends[0]], _REFS[ends[1]], amount, UUID(int=subject), period
    ),
    st.sampled_from(["a", "b"]),
    st.permutations(range(len(_REFS))),
    st.integers(1, 10**12),
    st.integers(0, 4),
    st.sampled_from(["", "1"]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(_MOVES, max_size=6), max_size=8))
def test_whatever_is_posted_the_books_balance_and_follow_the_model(
    batches: list[list[Move]],
) -> None:
    """Against a model in a dozen lines: what is written, what each account holds."""
    now = datetime.fromisoformat("2026-11-24T12:00:00+00:00")
    written: dict[UUID, Move] = {}
    with transaction.atomic():
        for batch in batches:
            after = dict(written)
            altered = any(after.setdefault(move.id, move) != move for move in batch)
            held = dict.fromkeys(_REFS, 0)
            for move in after.values():
                held[move.debit] -= move.amount
                held[move.credit] += move.amount
            short = any(held[ref] < 0 for ref in _REFS if ref.owner is not None)
            try:
                assert post(batch, now=now) == len(after) - len(written)
                assert not altered
                assert not short
                written = after
            except ledger.AlteredRepeat:
                assert altered
            except NotEnoughMoney:
                assert short
            assert ledger.imbalance() == 0
            assert ledger.audit() == {}
            assert Transfer.objects.count() == len(written)
        transaction.set_rollback(True)


def test_an_account_that_is_opened_twice_is_one_with_nothing_in_it(now: datetime) -> None:
    post([top_up(100)], now=now)
    for _ in range(2):
        ledger.open([escrow(JOB), wallet(ORG)])
    assert ledger.balances([escrow(JOB), wallet(ORG)]) == {escrow(JOB): 0, wallet(ORG): 100}
    assert Account.objects.filter(kind="escrow").count() == 1
