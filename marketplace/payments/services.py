"""Top-ups by card, and what becomes of them.

A webhook is a doorbell: it says that something happened to an object, and whatever we do about
money follows from asking the processor for that object, then writing it down in one transaction
whose every step is a no-op the second time. So webhooks may come twice, late, shuffled or never
(`settle_pending` asks by itself), and the ledger ends the same.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final, TypeVar
from uuid import UUID, uuid5

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Model, Q, QuerySet

from marketplace import locks
from marketplace.core.errors import Conflict, Invalid, MarketError, Missing, Unavailable
from marketplace.core.money import MICRO, format_amount, parse_amount
from marketplace.core.states import TOP_UP
from marketplace.ledger import services as ledger
from marketplace.ledger.models import Transfer
from marketplace.ledger.services import CASH, DISPUTES, PROCESSOR_FEES, Move
from marketplace.models import Org
from marketplace.payments import gateway
from marketplace.payments.gateway import Checkout, Dispute, Notice
from marketplace.payments.models import TopUp, WebhookEvent

log = logging.getLogger(__name__)

_Row = TypeVar("_Row", bound=Model)

SMALLEST: Final = 1 * MICRO
LARGEST: Final = 100_000 * MICRO
CENT: Final = MICRO // 100

# What the processor keeps goes this way, as (debit, credit): cash stands below zero by what we
# hold, so what leaves us raises it, as a payout does.
_COST: Final = (PROCESSOR_FEES, CASH)
_PAGE_OPEN: Final = timedelta(hours=1)
# A webhook gets this long before the sweep asks by itself.
_PATIENCE: Final = timedelta(minutes=1)
# The processor settles within days, or there is nothing to settle.
_COST_KNOWN_AFTER: Final = timedelta(days=14)
# Rows that a sweep holds in memory at once.
_SLICE: Final = 100
_NAMESPACE: Final = UUID("0d6b5c0e-9a44-5f5a-8f0e-0c8b7f6d2a11")


def parse_top_up(text: object) -> int:
    """Micros from a person's "25.00"; raises Invalid like `start_top_up` does."""
    amount = parse_amount(text, most=LARGEST)
    _require_amount(amount)
    return amount


def start_top_up(
    org: Org, *, amount: int, by: User, success_url: str, cancel_url: str, now: datetime
) -> str:
    """The address of a page on which `by` pays `amount` micros into the org's wallet.

    Raises Invalid for less than 1, more than 100,000 or parts of a cent, Conflict if too many are
    still to be paid, and Unavailable if the processor doesn't answer; then nothing can be paid.
    Not inside a transaction: it asks the processor.
    """
    _require_amount(amount)
    # 1. The row first: its id makes the request idempotent, and the payment ours.
    top_up = _open(org, amount, by, now=now)
    # 2. The page.
    try:
        session_id, url = gateway.create_checkout(
            top_up.pk, cents=amount // CENT, email=by.email,
            success_url=success_url, cancel_url=cancel_url, until=now + _PAGE_OPEN,
        )  # fmt: skip
    except MarketError:
        # Should there be a page after all, nobody has its address.
        with transaction.atomic():
            top_up.advance("expire", now=now, reason="the card processor gave no page")
        raise
    # 3. What to ask about later.
    TopUp.objects.filter(pk=top_up.pk, checkout_session_id=None).update(
        checkout_session_id=session_id
    )
    return url


def receive_webhook(payload: bytes, header: str, *, now: datetime) -> str:
    """Acts on one webhook; returns the outcome in words.

    Raises gateway.Forged if the signature over the raw body is not the processor's or is older
    than 300 s, and Unavailable if the processor can't be asked: it will then ring again.
    """
    notice = gateway.verify_webhook(payload, header)
    event, _ = WebhookEvent.objects.get_or_create(
        id=notice.id,
        defaults={
            "type": notice.type[:100],
            # A charge itself tells us nothing; its payment leads to our top-up.
            "subject": notice.payment_intent if _is_charge(notice) else notice.subject,
            "received_at": now,
        },
    )
    return _apply(event, now=now)


def settle_pending(*, now: datetime) -> int:
    """Asks the processor about all that is still open; returns how many answers were new.

    For webhooks that never came, costs that were not known yet, and events that could not be
    acted on. Stops at once, until the next sweep, when the processor doesn't answer.
    """
    settled = 0
    for ask in _questions(now=now):
        try:
            settled += ask()
        except Unavailable as error:
            log.warning("payments are not swept: %s", error)
            break
        except MarketError:
            # One that can't be settled must not keep the others waiting.
            log.exception("a payment can't be settled; a person must look")
    return settled


@transaction.atomic
def _open(org: Org, amount: int, by: User, *, now: datetime) -> TopUp:
    # Two at once must not both be the last that is let in.
    locks.hold(f"top-ups {org.pk}")
    most = settings.POLICY.open_top_ups
    if TopUp.objects.of(org).open().count() >= most:
        raise Conflict(
            f"your organisation has {most} top-ups that wait to be paid, which is the most; pay "
            f"one, or wait: a page left unpaid closes after {_PAGE_OPEN // timedelta(minutes=1)} "
            "minutes"
        )
    return TopUp.objects.create(
        org=org, amount=amount, created_by=by, created_at=now,
        state=TOP_UP.initial, state_since=now,
    )  # fmt: skip


def _questions(*, now: datetime) -> Iterator[Callable[[], bool]]:
    """What to ask the processor about, the oldest first, read in slices.

    Each slice begins after the last one's end, so that what stays open is asked about once.
    """
    before = now - _PATIENCE
    waiting = TopUp.objects.open() | TopUp.objects.with_unknown_cost().filter(
        credited_at__gt=now - _COST_KNOWN_AFTER
    )
    for top_up in _slices(waiting.filter(created_at__lte=before), "created_at"):
        yield partial(_ask_about, top_up, now=now)
    unheard = WebhookEvent.objects.filter(applied_at=None, received_at__lte=before)
    for event in _slices(unheard, "received_at"):
        yield partial(_is_applied, event, now=now)


def _slices(rows: QuerySet[_Row], when: str) -> Iterator[_Row]:
    """`rows` from the oldest on, by the moment in `when`, so many at a time."""
    rows = rows.order_by(when, "pk")
    rest = rows
    while found := list(rest[:_SLICE]):
        yield from found
        last = found[-1]
        at, pk = getattr(last, when), last.pk
        rest = rows.filter(Q(**{f"{when}__gt": at}) | Q(**{when: at, "pk__gt": pk}))


def _require_amount(amount: object) -> None:
    if isinstance(amount, bool) or not isinstance(amount, int):
        raise Invalid("amount must be whole micros", field="amount")
    if not SMALLEST <= amount <= LARGEST:
        raise Invalid(
            f"a top-up is between {format_amount(SMALLEST)} and {format_amount(LARGEST)}",
            field="amount",
        )
    if amount % CENT:
        raise Invalid("a card pays whole cents: at most two decimal places", field="amount")


def _is_charge(notice: Notice) -> bool:
    return notice.type.startswith("charge.") and not notice.type.startswith("charge.dispute.")


def _apply(event: WebhookEvent, *, now: datetime) -> str:
    """Acts on an event unless that is done; raises Unavailable and leaves it for later."""
    if event.applied_at is not None:
        return event.outcome
    try:
        outcome = _outcome(event, now=now)
    except Missing as error:
        # Signed, and yet unknown to the processor: of another account, or deleted.
        outcome = str(error)
    WebhookEvent.objects.filter(pk=event.pk, applied_at=None).update(
        applied_at=now, outcome=outcome[:200]
    )
    return outcome


def _outcome(event: WebhookEvent, *, now: datetime) -> str:
    if event.type.startswith("checkout.session."):
        return _settle(gateway.retrieve_checkout(event.subject), now=now)
    if event.type.startswith("charge.dispute."):
        return _settle_dispute(gateway.retrieve_dispute(event.subject), now=now)
    if event.type in {"charge.succeeded", "charge.updated"}:
        top_up = TopUp.objects.filter(payment_intent_id=event.subject).first()
        if top_up is not None and top_up.checkout_session_id:
            return _settle(gateway.retrieve_checkout(top_up.checkout_session_id), now=now)
    return "nothing to do"


def _is_applied(event: WebhookEvent, *, now: datetime) -> bool:
    _apply(event, now=now)
    return True


def _ask_about(top_up: TopUp, *, now: datetime) -> bool:
    """Whether the processor's answer changed anything."""
    before = (top_up.state, top_up.cost)
    if top_up.checkout_session_id is None:
        # We died before its page could be handed out: it can't be paid.
        if now - top_up.created_at > _PAGE_OPEN:
            _expire(top_up, now=now, reason="no page was made to pay on")
    else:
        _settle(gateway.retrieve_checkout(top_up.checkout_session_id), now=now)
    top_up.refresh_from_db()
    return before != (top_up.state, top_up.cost)


def _settle(checkout: Checkout, *, now: datetime) -> str:
    """Writes down what a session has come to; any number of times, in any order."""
    top_up = _top_up_of(checkout)
    if top_up is None:
        return "not one of ours"
    if checkout.is_paid:
        if checkout.cents * CENT != top_up.amount or checkout.currency != settings.CURRENCY:
            log.error(
                "top-up %s of %s was paid with %s %s: not credited, a person must look",
                top_up.pk, top_up.amount, checkout.cents, checkout.currency,
            )  # fmt: skip
            return "paid with another amount or currency"
        return _credit(top_up, checkout, now=now)
    if checkout.status == "expired":
        return _expire(top_up, now=now, reason="the page was left unpaid")
    if checkout.status == "complete" and checkout.has_failed:
        return _expire(top_up, now=now, reason="the payment failed at the bank")
    return "not paid yet"


def _top_up_of(checkout: Checkout) -> TopUp | None:
    """By the session; else by our mark in it, should it be paid before we wrote its id down."""
    known = TopUp.objects.filter(checkout_session_id=checkout.id).first()
    if known is None and checkout.top_up is not None:
        TopUp.objects.filter(pk=checkout.top_up, checkout_session_id=None).update(
            checkout_session_id=checkout.id
        )
        known = TopUp.objects.filter(pk=checkout.top_up, checkout_session_id=checkout.id).first()
    return known


@transaction.atomic
def _credit(top_up: TopUp, checkout: Checkout, *, now: datetime) -> str:
    wallet, debt = ledger.wallet(top_up.org_id), ledger.receivable(top_up.org_id)
    # 1. One at a time: the accounts' locks also guard the row.
    held = ledger.hold([CASH, PROCESSOR_FEES, wallet, debt])
    top_up.refresh_from_db()
    # 2. The money; its id is made of the top-up and the session.
    moves = [Move("top_up", CASH, wallet, top_up.amount, top_up.pk, checkout.id)]
    is_new = ledger.post(moves, now=now) > 0
    if top_up.state == "open":
        top_up.advance(
            "credit", now=now, reason=f"paid by card: {format_amount(top_up.amount)}",
            credited_at=now, payment_intent_id=checkout.payment_intent,
        )  # fmt: skip
    # 3. What the org owes us is paid back first.
    owed = min(-held[debt], top_up.amount)
    if is_new and owed > 0:
        ledger.post([Move("repaid", wallet, debt, owed, top_up.pk)], now=now)
    # 4. What the card cost, once the processor has settled.
    if checkout.cost is not None and top_up.cost is None:
        cost = checkout.cost * CENT
        if cost:
            ledger.post([Move("card_cost", *_COST, cost, top_up.pk)], now=now)
        TopUp.objects.filter(pk=top_up.pk).update(cost=cost)
    return "credited" if is_new else "already credited"


@transaction.atomic
def _expire(top_up: TopUp, *, now: datetime, reason: str) -> str:
    locked = TopUp.objects.select_for_update().get(pk=top_up.pk)
    if locked.state != "open":
        return f"already {locked.state}"
    locked.advance("expire", now=now, reason=reason)
    return reason


@dataclass(frozen=True)
class _Case:
    """A dispute in the ledger: how its money was taken, and the name its moves go by."""

    org_id: UUID
    subject: UUID

    @property
    def refs(self) -> list[ledger.Ref]:
        return [CASH, DISPUTES, PROCESSOR_FEES, self.wallet, self.debt]

    @property
    def wallet(self) -> ledger.Ref:
        return ledger.wallet(self.org_id)

    @property
    def debt(self) -> ledger.Ref:
        return ledger.receivable(self.org_id)

    def moved(self) -> dict[str, int]:
        """Micros by kind of move, of what is written already."""
        return dict(
            Transfer.objects.filter(reference=self.subject, period="").values_list("kind", "amount")
        )


def _settle_dispute(dispute: Dispute, *, now: datetime) -> str:
    """Writes down what a dispute has come to, from the whole of it: any times, in any order."""
    top_up = TopUp.objects.filter(pk=dispute.top_up).first() if dispute.top_up else None
    if top_up is None or dispute.currency != settings.CURRENCY:
        return "not about a top-up of ours"
    if top_up.state == "open" and top_up.checkout_session_id:
        # Its own webhook is still on the way.
        _settle(gateway.retrieve_checkout(top_up.checkout_session_id), now=now)
    case = _Case(top_up.org_id, uuid5(_NAMESPACE, dispute.id))
    with transaction.atomic():
        held = ledger.hold(case.refs)
        moved = case.moved()
        taken = CENT * -sum(each.cents for each in dispute.withdrawals if each.cents < 0)
        if taken and not {"dispute", "dispute_owed"} & moved.keys():
            ledger.post(_take(case, taken, held[case.wallet]), now=now)
            moved = case.moved()
        closed = {"dispute_lost", "dispute_won", "dispute_won_owed"} & moved.keys()
        if taken and not closed and dispute.status in {"won", "lost"}:
            debt = -ledger.balance(case.debt)
            ledger.post(_close(case, moved, debt, won=dispute.status == "won"), now=now)
        ledger.post(_costs(case, dispute), now=now)
    return f"dispute {dispute.status}"


def _take(case: _Case, amount: int, in_wallet: int) -> list[Move]:
    """Out of the wallet as far as it goes; the rest is owed."""
    own = min(amount, in_wallet)
    moves = []
    if own:
        moves.append(Move("dispute", case.wallet, DISPUTES, own, case.subject))
    if amount > own:
        moves.append(Move("dispute_owed", case.debt, DISPUTES, amount - own, case.subject))
    return moves


def _close(case: _Case, moved: dict[str, int], debt: int, *, won: bool) -> list[Move]:
    """Won: the debt that it made is forgiven, the rest is back in the wallet. Lost: it is gone."""
    own, owed = moved.get("dispute", 0), moved.get("dispute_owed", 0)
    if not won:
        return [Move("dispute_lost", DISPUTES, CASH, own + owed, case.subject)]
    # What was paid back since comes back as money.
    forgiven = min(owed, debt)
    moves = []
    if own + owed > forgiven:
        back = own + owed - forgiven
        moves.append(Move("dispute_won", DISPUTES, case.wallet, back, case.subject))
    if forgiven:
        moves.append(Move("dispute_won_owed", DISPUTES, case.debt, forgiven, case.subject))
    return moves


def _costs(case: _Case, dispute: Dispute) -> list[Move]:
    """What the processor keeps for handling the dispute (a fee below 0 is one given back)."""
    return [
        Move(
            "dispute_cost",
            *(_COST if each.fee > 0 else _COST[::-1]),
            abs(each.fee) * CENT,
            case.subject,
            each.id,
        )
        for each in dispute.withdrawals
        if each.fee
    ]
