"""How money moves: `post`, and nothing else.

A `Move` says who gives, who gets and why; `post` writes a batch of them down, all or none. The
id of a transfer is made of its kind, subject and period, so posting the same move again (a
retried task, a webhook sent twice, a settlement cut short by kill -9) changes nothing.

Amounts are micros, always above 0; the balances of all accounts always sum to 0.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID, uuid5

from django.db import IntegrityError, connection, transaction
from django.db.models import BigIntegerField, Case, F, Q, QuerySet, Sum, When
from psycopg.errors import UniqueViolation

from marketplace import bulk
from marketplace.core.errors import NotEnoughMoney
from marketplace.core.money import format_amount
from marketplace.ledger.models import NEVER_NEGATIVE, Account, AccountKind, Transfer

# Fixed for ever: with another one, every repeat of an old move would post again.
_NAMESPACE: Final = UUID("6b1f3a52-7c0e-5d84-9f2b-3e5a1c9d7e60")
_KIND: Final = re.compile(r"[a-z][a-z_]{0,39}")
_LARGEST: Final = 2**63 - 1


class AccountShort(NotEnoughMoney):
    """`short` maps each account that would go below zero to the micros that it lacks."""

    def __init__(self, message: str, short: "Mapping[Ref, int]") -> None:
        super().__init__(message)
        self.short = short


class AlteredRepeat(Exception):
    """A move came back with another amount or other accounts: a bug in the caller, not a no."""


@dataclass(frozen=True, slots=True)
class Ref:
    """Names an account, whether or not it exists yet."""

    kind: AccountKind
    owner: UUID | None = None

    def __hash__(self) -> int:
        # A round looks up hundreds of thousands; few owners have two accounts.
        return 0 if self.owner is None else hash(self.owner.int)

    def __str__(self) -> str:
        name = self.kind.replace("_", " ")
        return f"{name} of {self.owner}" if self.owner else name


CASH: Final = Ref(AccountKind.CASH)
FEES: Final = Ref(AccountKind.FEES)
PROCESSOR_FEES: Final = Ref(AccountKind.PROCESSOR_FEES)
DISPUTES: Final = Ref(AccountKind.DISPUTES)


def wallet(org_id: UUID) -> Ref:
    """What the org has topped up and not yet spent."""
    return Ref(AccountKind.WALLET, org_id)


def escrow(job_id: UUID) -> Ref:
    """What is held for the job's next hour and its save."""
    return Ref(AccountKind.ESCROW, job_id)


def payable(org_id: UUID) -> Ref:
    """What the org has earned and not yet been paid."""
    return Ref(AccountKind.PAYABLE, org_id)


def in_transit(org_id: UUID) -> Ref:
    """What is on its way to the org's bank."""
    return Ref(AccountKind.IN_TRANSIT, org_id)


def receivable(org_id: UUID) -> Ref:
    """What the org owes us, as a balance below zero."""
    return Ref(AccountKind.RECEIVABLE, org_id)


def vat(country: str) -> Ref:
    """Tax collected for a country, by its ISO 3166 code of two capitals."""
    if not re.fullmatch(r"[A-Z]{2}", country):
        raise ValueError(f"a country is two capitals like DE, not {country!r}")
    return Ref(AccountKind.VAT, uuid5(_NAMESPACE, f"country:{country}"))


@dataclass(frozen=True, slots=True)
class Move:
    """`amount` micros from `debit` to `credit`, because of `subject`, for `period`.

    `kind`, `subject` and `period` together name the move: the same three are the same move.
    Raises ValueError for what can never be one, an amount of 0 included: leave those out.
    """

    kind: str
    debit: Ref
    credit: Ref
    amount: int
    subject: UUID
    period: str = ""

    def __post_init__(self) -> None:
        if not _KIND.fullmatch(self.kind):
            raise ValueError(f"a kind is up to 40 of a-z and _, not {self.kind!r}")
        if not 0 < self.amount <= _LARGEST:
            raise ValueError(f"a move is of 1 to 2^63-1 micros, not {self.amount}")
        if self.debit == self.credit:
            raise ValueError(f"a move needs two accounts, not {self.debit} twice")

    @property
    def id(self) -> UUID:
        """The transfer's id."""
        return uuid5(_NAMESPACE, f"{self.kind}:{self.subject}:{self.period}")


@dataclass(frozen=True, slots=True)
class _Held:
    pk: int
    balance: int


class Balances(dict[Ref, int]):
    """Micros of locked accounts, as `hold` found them."""

    def __init__(self, accounts: Mapping[Ref, _Held]) -> None:
        super().__init__((ref, held.balance) for ref, held in accounts.items())
        self.accounts = accounts


class Named(dict[UUID, Move]):
    """Moves by the ids of their transfers, as `name` makes them."""


def name(moves: Iterable[Move]) -> Named:
    """What `post` begins with; asks the database nothing, so that a thread beside the caller's may do
    it ahead. Raises AlteredRepeat for two that are one move and not the same."""
    by_id = Named()
    for move in moves:
        known = by_id.setdefault(move.id, move)
        if known is not move and known != move:
            raise AlteredRepeat(f"one batch holds both {known} and {move}")
    return by_id


def open(refs: Iterable[Ref]) -> None:
    """Makes those of these accounts that there aren't: whoever holds them later need not."""
    _open(set(refs))


def post(moves: Iterable[Move] | Named, *, now: datetime, held: Balances | None = None) -> int:
    """Writes the moves down, all or none; returns how many were new.

    A batch is judged as a whole: an account may pass on what it gets in the same batch. A move
    that is already written is left out, whatever the balances are by now.

    Raises AccountShort (a NotEnoughMoney) if an account would go below zero, and AlteredRepeat
    if a move is known with another amount or other accounts; then nothing was written, and the
    caller's transaction is still good. Must run inside the caller's transaction, which keeps
    the locks of all named accounts (taken together, in primary-key order) until it ends: post
    once, or `hold` everything first; and call nobody on the network in between.

    `held`: what `hold` returned in this transaction for all accounts of these moves, if nothing was
    posted since: they are then not looked up and locked again.
    """
    _require_transaction()
    by_id = moves if isinstance(moves, Named) else name(moves)
    if not by_id:
        return 0
    with transaction.atomic():
        # 1. From here on nobody else moves these accounts.
        if held is None:
            refs = {ref for move in by_id.values() for ref in (move.debit, move.credit)}
            held = Balances(_lock(refs))
        accounts = held.accounts
        # 2. Repeats fall out.
        new = _unwritten(by_id, accounts)
        # 3. Say kindly what the CHECK would say rudely.
        _require_funds(new.values(), accounts)
        # 4. The balances follow by the trigger.
        _insert(new, accounts, now)
    return len(new)


def hold(refs: Iterable[Ref]) -> Balances:
    """Locks the accounts to the end of the caller's transaction; returns their balances.

    For a move whose amount depends on a balance. Name every account that the transaction will
    post to: one locked later, out of order, could deadlock.
    """
    _require_transaction()
    return Balances(_lock(set(refs)))


def balance(ref: Ref) -> int:
    """Micros; 0 for an account that nothing has touched."""
    return balances([ref])[ref]


def balances(refs: Iterable[Ref]) -> dict[Ref, int]:
    """Micros of each; one query."""
    wanted = set(refs)
    found = {ref: held.balance for ref, held in _find(wanted).items()}
    return {ref: found.get(ref, 0) for ref in wanted}


def imbalance() -> int:
    """The sum of all balances: 0, or the ledger is broken."""
    return Account.objects.aggregate(total=Sum("balance", default=0))["total"] or 0


def audit() -> dict[Ref, int]:
    """Accounts that differ from their transfers, with the difference in micros: none, always."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT a.kind, a.owner, a.balance - coalesce(sum(m.change), 0)
            FROM ledger_account a LEFT JOIN (
                SELECT credit_id AS account, amount AS change FROM ledger_transfer
                UNION ALL SELECT debit_id, -amount FROM ledger_transfer
            ) m ON m.account = a.id
            GROUP BY a.id HAVING a.balance <> coalesce(sum(m.change), 0)
            """
        )
        return {Ref(AccountKind(kind), owner): int(off) for kind, owner, off in cursor}


def statement(ref: Ref) -> QuerySet[Transfer]:
    """The account's transfers, oldest first, each with `change`: the micros it gained or lost."""
    # Looked up by itself, so that PostgreSQL sees two index scans and not a join.
    held = _find({ref}).get(ref)
    pk = held.pk if held else None
    return (
        Transfer.objects.filter(Q(debit=pk) | Q(credit=pk))
        .annotate(
            change=Case(
                When(credit=pk, then=F("amount")),
                default=-F("amount"),
                output_field=BigIntegerField(),
            )
        )
        .select_related("debit", "credit")
        .order_by("at", "id")
    )


def _require_transaction() -> None:
    if not connection.in_atomic_block:
        raise RuntimeError("money moves only inside the transaction of its cause")


def _lock(refs: set[Ref]) -> dict[Ref, _Held]:
    """The accounts, made where missing, locked in primary-key order.

    Missing ones are made before anything is locked: who waits for somebody else's new account holds
    nothing that the other could want.
    """
    found = _find(refs)
    if missing := refs - found.keys():
        _open(missing)
        found |= _find(missing)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id, balance FROM ledger_account WHERE id = ANY(%s::bigint[]) ORDER BY id"
            " FOR NO KEY UPDATE",
            [bulk.numbers(held.pk for held in found.values())],
        )
        now_held = dict(cursor.fetchall())
    return {ref: _Held(held.pk, now_held[held.pk]) for ref, held in found.items()}


def _open(refs: set[Ref]) -> None:
    """In one order: of two who make the same, one waits for the other."""
    missing = sorted(refs, key=lambda ref: (ref.kind, ref.owner.int if ref.owner else 0))
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO ledger_account (kind, owner, balance)
            SELECT kind, owner, 0
            FROM unnest(%s::text[], %s::uuid[]) WITH ORDINALITY AS r(kind, owner, place)
            ORDER BY place ON CONFLICT (kind, owner) DO NOTHING
            """,
            [_kinds(missing), _owners(missing)],
        )


def _find(refs: set[Ref]) -> dict[Ref, _Held]:
    """Those that there are. The database says by their places which, and spells no owner out."""
    owned = [ref for ref in refs if ref.owner is not None]
    ours = [ref for ref in refs if ref.owner is None]
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT r.place, a.id, a.balance FROM ledger_account a
            JOIN unnest(%s::text[], %s::uuid[]) WITH ORDINALITY AS r(kind, owner, place)
            USING (kind, owner)
            UNION ALL
            SELECT %s + r.place, a.id, a.balance FROM ledger_account a
            JOIN unnest(%s::text[]) WITH ORDINALITY AS r(kind, place) USING (kind)
            WHERE a.owner IS NULL
            """,
            [_kinds(owned), _owners(owned), len(owned), _kinds(ours)],
        )
        named = [*owned, *ours]
        return {named[place - 1]: _Held(pk, amount) for place, pk, amount in cursor.fetchall()}


def _kinds(refs: Sequence[Ref]) -> str:
    """As an array of PostgreSQL's: kinds are plain words."""
    return "{" + ",".join([ref.kind.value for ref in refs]) + "}"


def _owners(refs: Sequence[Ref]) -> str:
    return "{" + ",".join([ref.owner.hex if ref.owner else "NULL" for ref in refs]) + "}"


def _unwritten(by_id: dict[UUID, Move], accounts: Mapping[Ref, _Held]) -> dict[UUID, Move]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id, debit_id, credit_id, amount FROM ledger_transfer"
            " WHERE id = ANY(%s::uuid[])",
            [bulk.ids(by_id)],
        )
        known = cursor.fetchall()
    new = dict(by_id)
    for pk, *written in known:
        move = new.pop(pk)
        if written != [accounts[move.debit].pk, accounts[move.credit].pk, move.amount]:
            raise AlteredRepeat(
                f"{move} is already written, but as (debit, credit, amount) {written}"
            )
    return new


def _require_funds(moves: Iterable[Move], accounts: Mapping[Ref, _Held]) -> None:
    after = {ref: held.balance for ref, held in accounts.items()}
    for move in moves:
        after[move.debit] -= move.amount
        after[move.credit] += move.amount
    short = {
        ref: -amount
        for ref, amount in after.items()
        if ref.kind in NEVER_NEGATIVE and amount < 0 and amount < accounts[ref].balance
    }
    if short:
        said = "; ".join(
            f"the {ref} holds {format_amount(accounts[ref].balance)},"
            f" {format_amount(lack)} too little"
            for ref, lack in short.items()
        )
        raise AccountShort(f"not enough money: {said}. Top up, or ask for less", short)


def _insert(new: Mapping[UUID, Move], accounts: Mapping[Ref, _Held], now: datetime) -> None:
    if not new:
        return
    moves = new.values()
    try:
        bulk.write(
            Transfer,
            {
                "id": list(new),
                "kind": [move.kind for move in moves],
                "debit_id": [accounts[move.debit].pk for move in moves],
                "credit_id": [accounts[move.credit].pk for move in moves],
                "amount": [move.amount for move in moves],
                "reference": [move.subject for move in moves],
                "period": [move.period for move in moves],
            },
            {"at": now},
        )
    except IntegrityError as error:
        if not isinstance(error.__cause__, UniqueViolation):
            raise
        # The same accounts are locked, so whoever was first named others.
        raise AlteredRepeat("a move was written a moment ago, between other accounts") from None
