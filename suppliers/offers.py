"""Offers: a node's idle GPUs at a price. A new price is a new offer; the old one is closed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction

from marketplace.core import energy, windows
from marketplace.core.errors import Conflict, Invalid
from marketplace.core.money import MAX_PRICE, parse_amount
from marketplace.core.windows import Window
from marketplace.models import advance
from suppliers.models import Node, Offer

_LONGEST_NOTICE_S: Final = 86_400
_MOST_WINDOWS: Final = 50


@dataclass(frozen=True)
class Terms:
    """What a supplier asks. `ask` is what they net per GPU-hour, as written: "1.25"."""

    ask: str
    notice_s: int = 60
    audience: str = Offer.Audience.ANYONE
    scripts: bool = True
    windows: Sequence[Window] = field(default_factory=tuple)


def create_offer(node: Node, terms: Terms, *, by: User, now: datetime) -> Offer:
    """Offers the node, in place of what it was offered at; leases keep their price.

    Raises Invalid naming the field at fault, Conflict if the node is retired or somebody else
    of its org offers it at the same moment.
    """
    ask = parse_amount(terms.ask, field="ask", most=MAX_PRICE)
    if not 0 <= terms.notice_s <= _LONGEST_NOTICE_S:
        raise Invalid(
            f"notice_s is from 0 to {_LONGEST_NOTICE_S} seconds, not {terms.notice_s}",
            field="notice_s",
        )
    if terms.audience not in Offer.Audience.values:
        raise Invalid(f"audience is one of {', '.join(Offer.Audience.values)}", field="audience")
    if len(terms.windows) > _MOST_WINDOWS:
        raise Invalid(f"an offer has at most {_MOST_WINDOWS} windows", field="windows")
    offer = Offer(
        node=node,
        state=Offer.MACHINE.initial,
        state_since=now,
        ask_micros=ask,
        notice_s=terms.notice_s,
        audience=terms.audience,
        scripts=terms.scripts,
        windows=windows.check(terms.windows),
    )
    return _replace(node, offer, by=by, now=now)


@transaction.atomic
def pause(offer: Offer, *, by: User, now: datetime) -> Offer:
    """Nothing new starts on it. Raises InvalidTransition, Conflict."""
    return offer.advance("pause", now=now, reason="its owner pauses it", by=by.get_username())


@transaction.atomic
def resume(offer: Offer, *, by: User, now: datetime) -> Offer:
    """Open again, at the same price. Raises InvalidTransition, Conflict."""
    return offer.advance("resume", now=now, reason="its owner resumes it", by=by.get_username())


@transaction.atomic
def close(offer: Offer, *, by: User, now: datetime) -> Offer:
    """The end of an offer; leases made from it keep their price. Raises InvalidTransition."""
    return offer.advance("close", now=now, reason="its owner closes it", by=by.get_username())


def ask_floor(node: Node) -> int:
    """The least ask, micros per GPU-hour, that pays for the power of the node's hungriest GPU."""
    watts = max((gpu.watts for gpu in node.gpus.all() if gpu.present), default=0)
    site = node.site
    return energy.ask_floor(watts=watts, pue=site.pue, micros_per_kwh=site.tariff_micros_per_kwh)


@transaction.atomic
def _replace(node: Node, offer: Offer, *, by: User, now: datetime) -> Offer:
    # The node's row keeps it from being retired between the look and the insert.
    held = Node.objects.select_for_update(no_key=True).get(pk=node.pk)
    if held.state == "retired":
        raise Conflict("a retired node can't be offered; enrol the machine anew")
    name = by.get_username()
    previous = Offer.objects.filter(node=node).exclude(state="closed").order_by("id")
    advance(list(previous), "close", now=now, reason="replaced by a new offer", by=name)
    try:
        with transaction.atomic():
            offer.save(force_insert=True)
    except IntegrityError:
        raise Conflict("this node was offered anew just now; look again") from None
    return offer
