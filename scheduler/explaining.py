"""What a round tells those who got nothing: a waiting job why it waits and what would place it, an
idle offer why it was not let and at which ask it would have been.

The clearing worker writes it down after the round, for it alone has the book; pages and the API read
one row. So many are looked at in a round, those first that nobody has looked at for longest. Nobody
else's limit is told, but an ask that would have let an offer says that somebody pays about as much.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from itertools import islice
from typing import Final
from uuid import UUID

import numpy as np
from django.conf import settings

from buyers.models import Job
from marketplace import bulk
from marketplace.core.fit import Wants, misfit
from marketplace.core.hardware import Level
from marketplace.core.money import BASIS_POINTS, MICRO, format_amount, gross_ask, with_premium
from scheduler import book as market
from scheduler import opening
from scheduler.lots import Lot
from scheduler.matching import explain, idling, saying
from scheduler.matching.book import Book
from scheduler.matching.cells import Names
from scheduler.matching.explain import Change, Term, Waiting, Why
from scheduler.matching.idling import Idle, Lost
from scheduler.matching.matches import Matches
from scheduler.models import Told
from scheduler.opening import Openings
from suppliers.models import Offer

_FRESH: Final = timedelta(seconds=30)
_LATELY: Final = timedelta(minutes=10)
"""What an offer was told before says nothing of now: no job may have waited since."""
_KEPT: Final = timedelta(days=1)
_MOST: Final = 200
"""Jobs, and offers, that one round looks at."""
_MOST_PAIRS: Final = 200_000
"""Of a job and an offer, of which a round asks why they don't fit: a fifth of a second."""
_CLEAR_S: Final = 0.5
"""So long a round may clear its book again, for jobs and offers together."""
_CLEARINGS: Final = 5
"""At most so many for each offer."""
_BY_TURNS: Final = timedelta(minutes=5)
"""Where there is no time for all, offers keep for so long what an earlier round has told them."""
_MOST_CHANGES: Final = 6
_REASONS: Final = 3


@dataclass(frozen=True)
class Helps:
    """One change that alone would place a job: `accept` makes it (`scheduler.jobs`)."""

    term: str
    to: int | str
    """Micros of a limit, a number of GPUs, a moment to wait for, else a level, region, trust or tier
    by its name."""
    gpu_class: str
    gpus: int
    level: str
    hourly_micros: int
    """What the place costs; of an offer to wait for, what it costs at most."""
    cost_micros: int
    """The same for as much work as all its GPUs do in an hour on the class with its highest limit:
    what changes are ranked by."""
    words: str


@dataclass(frozen=True)
class JobTold:
    """Why a job waits, and what would place it: first an offer to wait for, which changes nothing,
    then changes, the cheapest first."""

    why: str
    words: str
    changes: Sequence[Helps]


@dataclass(frozen=True)
class OfferTold:
    """Why an offer was not let. Asks are what the supplier nets, micros per GPU-hour."""

    why: str
    words: str
    let_at_micros: int | None = None
    """It would have been let at this ask."""
    lowest_tried_micros: int | None = None
    """And at no other that was tried, down to this."""
    at: datetime | None = None
    """When that round was, of what was told."""

    @property
    def ask(self) -> str:
        """The ask that would have let it, as a form takes it."""
        return format_amount(self.let_at_micros or 0).replace(",", "")


@dataclass(frozen=True)
class Cleared:
    """A round's book with the rows that its positions stand for, and what came of it."""

    book: Book
    matches: Matches
    jobs: Sequence[Job]
    wanted: Sequence[Wants]
    rows: Sequence[Lot]
    """Offers in the book: those with something free."""
    standing: Sequence[Lot]
    """All open offers."""
    seconds: float
    """How long it took to clear."""
    clear: Callable[[Book], Matches]

    @cached_property
    def names(self) -> Names:
        """What the book's classes trade as: it tells apart what only some jobs mind."""
        called = [""] * len(self.book.class_nvlink)
        numbers, first = np.unique(self.book.node_class, return_index=True)
        for number, at in zip(numbers.tolist(), first.tolist(), strict=True):
            called[number] = self.rows[at].stands.gpu_class
        return Names(called, ())


def tell(round: Cleared, *, now: datetime) -> None:
    """Writes down what there is to tell. Outside of the round's transaction: it may be lost."""
    waits, idles = _waits(round), _idles(round)
    looked = _looked_at([*waits.values(), *idles.values()])
    again = int(_CLEAR_S / max(round.seconds, 0.001))
    said: list[tuple[UUID, JobTold | OfferTold]]
    lately = {at for at, pk in idles.items() if pk in looked and now - looked[pk] < _BY_TURNS}
    said = [
        *_to_jobs(round, _due(waits, looked, now), again // 2, now),
        *_to_offers(round, _due(idles, looked, now), again - again // 2, lately),
    ]
    Told.objects.bulk_create(
        [Told(subject=subject, says=asdict(told), looked_at=now) for subject, told in said],
        update_conflicts=True,
        unique_fields=["subject"],
        update_fields=["says", "looked_at"],
    )
    Told.objects.filter(looked_at__lt=now - _KEPT).delete()


def of_job(job: Job) -> JobTold | None:
    """What the waiting job was told last; None if it waits for its first round, or doesn't wait."""
    if job.state != "queued":
        return None
    told = Told.objects.filter(pk=job.pk, looked_at__gte=job.queued_at).first()
    if told is None:
        return None
    changes = tuple(Helps(**change) for change in told.says["changes"])
    return JobTold(**{**told.says, "changes": changes})


def forget(job: Job) -> None:
    """What the job was told holds no longer: it has changed."""
    Told.objects.filter(pk=job.pk).delete()


def of_offers(offers: Iterable[Offer], *, now: datetime) -> dict[UUID, OfferTold]:
    """Offer's id → what it was told last, if that was lately. One query."""
    asked = [offer.pk for offer in offers if offer.state == "open"]
    found = Told.objects.filter(pk__in=asked, looked_at__gte=now - _LATELY) if asked else ()
    return {told.pk: OfferTold(**{**told.says, "at": told.looked_at}) for told in found}


def _looked_at(subjects: Sequence[UUID]) -> Mapping[UUID, datetime]:
    """When each of these jobs and offers was looked at last."""
    these = bulk.among(subjects)
    return dict(Told.objects.filter(pk__in=these).values_list("subject", "looked_at"))


def _waits(round: Cleared) -> dict[int, UUID]:
    """The jobs that were not placed, by their number in the book; the longest waiting first."""
    waits = np.flatnonzero(round.matches.level < 0).tolist()
    waits.sort(key=lambda at: (round.jobs[at].queued_at, round.jobs[at].pk))
    return {at: round.jobs[at].pk for at in waits}


def _idles(round: Cleared) -> dict[int, UUID]:
    """The offers of which nothing is let, by their number in the book."""
    let = set(round.matches.node.tolist())
    return {
        at: row.offer_id
        for at, row in enumerate(round.rows)
        if at not in let and row.free == row.stands.gpus and not row.stands.held_for
    }


def _due(subjects: Mapping[int, UUID], looked: Mapping[UUID, datetime], now: datetime) -> list[int]:
    """Those first that were never looked at, then those of longest ago."""
    never = list(islice((at for at, pk in subjects.items() if pk not in looked), _MOST))
    if len(never) == _MOST:
        return never
    stale = [(looked[pk], at) for at, pk in subjects.items() if pk in looked]
    return (never + [at for when, at in sorted(stale) if when < now - _FRESH])[:_MOST]


def _to_jobs(
    round: Cleared, due: Sequence[int], again: int, now: datetime
) -> Iterator[tuple[UUID, JobTold]]:
    """Changes are tried out, by clearing `again` as often as there is time for; the others follow
    from what is free and at which prices."""
    pairs = 0
    openings = Openings(market.opening(now) if due else (), pairs=_MOST_PAIRS)
    for found in explain.waiting(round.book, round.matches, due):
        job, wanted = round.jobs[found.job], round.wanted[found.job]
        if found.why is not Why.UNFIT:
            words = saying.why_waits(found, round.names)
        elif pairs <= _MOST_PAIRS:
            pairs += len(round.standing)
            words = _counted(misfit(wanted, row.stands) for row in round.standing)
        else:
            continue
        changes = _to_wait_for(openings, wanted)
        for change, helps in _changes(round, found, job, wanted):
            again -= 1
            if again < 0 or _holds(round, found.job, change):
                changes.append(helps)
        yield job.pk, JobTold(found.why, words or "no offer is open", changes)


def _to_wait_for(openings: Openings, wanted: Wants) -> list[Helps]:
    found = openings.first(wanted)
    if found is None:
        return []
    at, row = found
    name = row.stands.gpu_class
    best = max(wanted.limits.values()) * wanted.gpus
    return [
        Helps(
            term=opening.WAIT, to=at.isoformat(), gpu_class=name, gpus=wanted.gpus, level="node",
            hourly_micros=wanted.limits[name] * wanted.gpus, cost_micros=best,
            words=opening.words(at, row, wanted),
        )
    ]  # fmt: skip


def _holds(round: Cleared, job: int, change: Change) -> bool:
    """Whether another clearing, with this change, places the job."""
    again = round.clear(explain.changed(round.book, job, change))
    return bool(again.level[job] >= 0)


def _changes(round: Cleared, found: Waiting, job: Job, wanted: Wants) -> list[tuple[Change, Helps]]:
    """The cheapest changes, each once for a GPU class however many kinds of it the book tells
    apart."""
    told: dict[object, tuple[Change, Helps]] = {}
    for change in map(_rounded, found.changes):
        gpu_class = round.names.classes[change.gpu_class]
        key = (change.term, gpu_class if change.term is Term.LIMIT else change.to)
        if key in told or not _can_be_made(round, change, job, wanted):
            continue
        paid = _paid(change, job)
        told[key] = change, Helps(
            term=paid.term, to=_to(paid), gpu_class=gpu_class, gpus=paid.gpus,
            level=Level(paid.level).name.lower(), hourly_micros=_micros(paid.hourly),
            cost_micros=_micros(paid.cost), words=saying.what_helps(paid, round.names),
        )  # fmt: skip
    return list(told.values())[:_MOST_CHANGES]


def _paid(change: Change, job: Job) -> Change:
    """As the buyer pays it: with the premium, which the book knows nothing of."""
    more = 1 + job.premium_bps / BASIS_POINTS
    to = change.to
    if change.term is Term.LIMIT:
        to = with_premium(_micros(change.to), job.premium_bps) / MICRO
    return replace(change, to=to, hourly=change.hourly * more, cost=change.cost * more)


def _rounded(change: Change) -> Change:
    """A limit to four digits, upwards: 3.262989 is 3.263 to a person."""
    if change.term is not Term.LIMIT:
        return change
    return replace(change, to=-_short(-_micros(change.to)) / MICRO)


def _can_be_made(round: Cleared, change: Change, job: Job, wanted: Wants) -> bool:
    """Whether what the engine doesn't know allows it, too."""
    if change.term is Term.TRUST:
        return change.to <= wanted.secrets_trust
    if change.term is Term.GPUS:
        # A recipe that is spread over fewer GPUs needs more memory on each.
        return job.recipe == "script"
    if change.term is Term.LEVEL:
        return len({round.rows[at].stands.environment for at in change.nodes}) == 1
    return True


def _to(change: Change) -> int | str:
    """As the REST API takes it: a limit in micros, all else as it is called."""
    if change.term is Term.LIMIT:
        return _micros(change.to)
    if change.term is Term.REGION:
        return saying.region(change.to)
    if change.term is Term.TRUST:
        return saying.trust(change.to)
    if change.term is Term.TIER:
        return saying.tier(change.to)
    if change.term is Term.LEVEL:
        return Level(int(change.to)).name.lower()
    return int(change.to)


def _short(micros: int) -> int:
    """The next amount below of four digits."""
    digit = int(10 ** max(0, len(str(abs(micros))) - 4))
    return micros // digit * digit


def _micros(usd: float) -> int:
    return round(usd * MICRO)


def _to_offers(
    round: Cleared, due: Sequence[int], again: int, lately: Collection[int]
) -> Iterator[tuple[UUID, OfferTold]]:
    """With the ask at which another clearing lets it. Where there is no time to find that out, who was
    told something `lately` keeps that, and is the first whose turn it is in the next round."""
    pairs = 0
    for found in idling.idle(round.book, round.matches, due):
        offer = round.rows[found.node].offer_id
        has_price = found.why in (Lost.DEAR, Lost.LONG)
        if has_price and again <= 0 and found.node in lately:
            continue
        pairs += len(round.jobs) if found.term is Term.LIMIT else 0
        told = OfferTold(found.why, _why_idles(round, found, pairs <= _MOST_PAIRS))
        if has_price and again > 0:
            times, again = min(again, _CLEARINGS), again - _CLEARINGS
            told = _with_ask(round, found.node, told, times)
        yield offer, told


def _with_ask(round: Cleared, node: int, told: OfferTold, times: int) -> OfferTold:
    """With the ask at which a second clearing lets the node, of those that so many can tell apart."""
    tries = idling.tries(round.book, round.matches, node)
    own = round.rows[node].ask_micros
    nets = sorted({net for ask in tries if 0 < (net := _short(_net(ask))) < own}, reverse=True)
    nets = idling.among(nets, times)
    gross = {_gross(net) / MICRO: net for net in nets}
    found = idling.let_at(round.book, node, gross, round.clear)
    if found is not None:
        let_at = gross[found]
        words = f"{told.words}; at {format_amount(let_at)} it would have been let"
        return replace(told, let_at_micros=let_at, words=words)
    if nets:
        words = f"{told.words}; even at {format_amount(nets[-1])} it would not have been let"
        return replace(told, lowest_tried_micros=nets[-1], words=words)
    return told


def _why_idles(round: Cleared, found: Idle, asked_why: bool) -> str:
    words = saying.why_idles(replace(found, price=_net(found.price) / MICRO))
    if found.term is not Term.LIMIT or not asked_why:
        return words
    stands = round.rows[found.node].stands
    why = _counted(misfit(wanted, stands) for wanted in round.wanted)
    return f"{words}: {why}" if why else words


def _counted(reasons: Iterable[str]) -> str:
    """The most frequent reasons, with how often each holds."""
    counted = Counter(reasons)
    counted.pop("", None)
    return "; ".join(f"{count} × {why}" for why, count in counted.most_common(_REASONS))


def _net(gross: float) -> int:
    """Micros that a supplier nets of a price in USD, the take kept."""
    return round(gross * MICRO) * (BASIS_POINTS - settings.POLICY.take_bps) // BASIS_POINTS


def _gross(net: int) -> int:
    return gross_ask(net, take_bps=settings.POLICY.take_bps)
