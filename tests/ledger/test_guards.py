"""What PostgreSQL itself refuses, whoever asks."""

from datetime import datetime
from uuid import UUID, uuid4

import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.models import ProtectedError

from marketplace.ledger import services as ledger
from marketplace.ledger.models import Account, Transfer
from marketplace.ledger.services import CASH, Move, post, wallet

pytestmark = pytest.mark.django_db

ORG = uuid4()
# In the tests' names, so the same in every worker.
STRANGER = UUID(int=7)


@pytest.fixture(autouse=True)
def history(now: datetime) -> None:
    post([Move("top_up", CASH, wallet(ORG), 100, uuid4())], now=now)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE ledger_transfer SET amount = 1",
        "UPDATE ledger_transfer SET at = now()",
        "DELETE FROM ledger_transfer",
        "TRUNCATE ledger_transfer",
        "TRUNCATE ledger_account, ledger_transfer",
        "DELETE FROM ledger_account",
        "UPDATE ledger_account SET balance = balance + 1",
        "UPDATE ledger_account SET kind = 'payable' WHERE kind = 'wallet'",
        f"UPDATE ledger_account SET owner = '{STRANGER}' WHERE kind = 'wallet'",
        f"INSERT INTO ledger_account (kind, owner, balance) VALUES ('wallet', '{STRANGER}', 5)",
        "INSERT INTO ledger_account (kind, owner, balance) VALUES ('cash', NULL, 0)",
        "INSERT INTO ledger_account (kind, owner, balance) VALUES ('wallet', NULL, 0)",
        f"INSERT INTO ledger_account (kind, owner, balance) VALUES ('fees', '{STRANGER}', 0)",
        f"INSERT INTO ledger_account (kind, owner, balance) VALUES ('loot', '{STRANGER}', 0)",
    ],
)
def test_history_and_balances_are_not_rewritten(sql: str) -> None:
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql)
    assert ledger.balances([CASH, wallet(ORG)]) == {CASH: -100, wallet(ORG): 100}
    assert Transfer.objects.count() == 1


@pytest.mark.parametrize("ends", ["-1, cash.id", "cash.id, -1", "-1, -2"])
def test_a_transfer_needs_both_of_its_accounts(ends: str) -> None:
    told = (
        "INSERT INTO ledger_transfer"
        " (id, kind, debit_id, credit_id, amount, reference, period, at)"
        f" SELECT gen_random_uuid(), 'gift', {ends}, 1, gen_random_uuid(), '', now()"
        " FROM ledger_account cash WHERE kind = 'cash'"
    )
    refused = pytest.raises(IntegrityError, match="not there")
    with refused, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(told)
    assert Transfer.objects.count() == 1
    assert ledger.audit() == {}


def test_transfers_between_accounts_that_are_not_there_do_not_cancel_out() -> None:
    """What goes out of a missing account and comes back leaves no balance to be missed."""
    told = (
        "INSERT INTO ledger_transfer"
        " (id, kind, debit_id, credit_id, amount, reference, period, at)"
        " SELECT gen_random_uuid(), 'gift', e.a, e.b, 1, gen_random_uuid(), '', now()"
        " FROM (VALUES (-1, -2), (-2, -1)) AS e(a, b)"
    )
    refused = pytest.raises(IntegrityError, match="2 transfers")
    with refused, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(told)
    assert Transfer.objects.count() == 1


@pytest.mark.parametrize("verb", ["UPDATE", "DELETE", "TRUNCATE"])
def test_the_market_has_no_privilege_to_change_history(verb: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT has_table_privilege('ledger_transfer', %s),"
            " (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)",
            [verb],
        )
        may, is_super = cursor.fetchone()
    assert not is_super
    assert not may


def test_a_role_that_may_update_still_meets_the_trigger() -> None:
    with connection.cursor() as cursor:
        cursor.execute("GRANT UPDATE ON ledger_transfer TO CURRENT_USER")
    with (
        pytest.raises(IntegrityError, match="the ledger only grows; post a transfer"),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute("UPDATE ledger_transfer SET amount = 1")


@pytest.mark.parametrize(
    "change", ["amount = 0", "amount = -5", "credit_id = debit_id", "kind = ''"]
)
def test_a_transfer_that_is_none_is_refused(change: str) -> None:
    field, _, value = change.partition(" = ")
    columns = {
        "id": f"'{uuid4()}'", "kind": "'x'", "amount": "5", "reference": f"'{uuid4()}'",
        "period": "''", "at": "now()", "debit_id": "c.id", "credit_id": "w.id",
        field: value.replace("debit_id", "c.id"),
    }  # fmt: skip
    with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO ledger_transfer ({', '.join(columns)})"
            f" SELECT {', '.join(columns.values())} FROM ledger_account c, ledger_account w"
            " WHERE c.kind = 'cash' AND w.kind = 'wallet'"
        )


def test_a_transfer_written_past_us_moves_the_balances_all_the_same() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ledger_transfer"
            " (id, kind, debit_id, credit_id, amount, reference, period, at)"
            " SELECT %s, 'by_hand', c.id, w.id, 5, %s, '', now()"
            " FROM ledger_account c, ledger_account w"
            " WHERE c.kind = 'cash' AND w.kind = 'wallet'",
            [uuid4(), uuid4()],
        )
    assert ledger.balances([CASH, wallet(ORG)]) == {CASH: -105, wallet(ORG): 105}
    assert ledger.audit() == {}


def test_a_wallet_is_not_overdrawn_by_hand_either() -> None:
    with (
        pytest.raises(IntegrityError, match="account_not_overdrawn"),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute(
            "INSERT INTO ledger_transfer"
            " (id, kind, debit_id, credit_id, amount, reference, period, at)"
            " SELECT %s, 'by_hand', w.id, c.id, 101, %s, '', now()"
            " FROM ledger_account c, ledger_account w"
            " WHERE c.kind = 'cash' AND w.kind = 'wallet'",
            [uuid4(), uuid4()],
        )


def test_django_deletes_no_account_that_has_a_history() -> None:
    with pytest.raises(ProtectedError):
        Account.objects.get(kind="wallet").delete()


def test_an_account_that_differs_from_its_transfers_is_found() -> None:
    """Only the owner of the tables can make one: by switching the guard off."""
    with connection.cursor() as cursor:
        # What is deferred must be done before a table may be altered.
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("ALTER TABLE ledger_account DISABLE TRIGGER USER")
        cursor.execute("UPDATE ledger_account SET balance = 107 WHERE kind = 'wallet'")
        cursor.execute("ALTER TABLE ledger_account ENABLE TRIGGER USER")
    assert ledger.audit() == {wallet(ORG): 7}
    assert ledger.imbalance() == 7
