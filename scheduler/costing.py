"""What every place that was found for a job would take and cost, and why all else doesn't do.

Thousands of places are reckoned side by side; an object is made of the few that are shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from heapq import nsmallest
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from django.conf import settings

from buyers.services import Plan
from marketplace.core.estimates import CPU_TFLOPS, Course, Estimate, unseen
from marketplace.core.fit import Wants, misfit
from marketplace.core.hardware import Level
from marketplace.core.money import MICRO, accrued, with_premium
from marketplace.core.specs import JobRequest
from scheduler import paces, timing
from scheduler.columns import Columns
from scheduler.matching.arrays import Floats, Ints
from scheduler.matching.cells import distinct

if TYPE_CHECKING:
    from scheduler.matching.quote import Answer


class Costed(NamedTuple):
    """A place before its rows are read."""

    seats: Sequence[tuple[int, int]]
    """So many GPUs of these nodes, by their index."""
    level: int
    price: int
    """The market's, micros per GPU-hour."""
    spent: Estimate
    why: str

    @property
    def gpus(self) -> int:
        return sum(part for _, part in self.seats)


@dataclass(frozen=True)
class Costs:
    """What each place that was found would take and cost, side by side."""

    answer: "Answer"
    prices: Sequence[int]
    """The market's, micros per GPU-hour."""
    speeds: Sequence[float]
    """What `courses` are divided by."""
    courses: Sequence[Course]
    which: Sequence[int]
    """Of these."""
    seconds: Sequence[float]
    totals: Sequence[int]
    """What all of it costs the buyer, micros."""
    covered: Sequence[bool]
    """Whether the budget is enough."""

    def best(self, most: int, *, covered: bool) -> list[Costed]:
        """Of those that the budget covers, or doesn't: the cheapest come first, of these the fastest."""
        firsts = self.answer.shares[self.answer.found["first"]]
        ranked = zip(
            self.totals, self.seconds, firsts["node"].tolist(), firsts["gpus"].tolist(),
            range(len(firsts)), strict=True,
        )  # fmt: skip
        which = [each is covered for each in self.covered]
        why = "" if covered else "it would cost more than the budget"
        return [self._place(at, why) for *_, at in nsmallest(most, compress(ranked, which))]

    def _place(self, at: int, why: str) -> Costed:
        place, spent = self.answer.place(at), self.courses[self.which[at]].at(self.speeds[at])
        seats = tuple(zip(place.nodes, place.gpus, strict=True))
        return Costed(seats, place.level, self.prices[at], spent, why)


def premium(request: JobRequest) -> int:
    """Basis points on top of the market's price."""
    return settings.POLICY.premium_of(request.service)


def costs(
    request: JobRequest, plan: Plan, answer: "Answer", standing: Columns, now: datetime
) -> Costs:
    """What all places of an answer about what stands would cost."""
    found, bps = answer.found, premium(request)
    tflops = np.zeros(len(found)) if plan.hours else _slowest(answer, standing)
    speeds = timing.speeds(plan, tflops, found["gpus"], found["keeps"])
    courses, which = _courses(plan, answer, standing, speeds, now)

    def seconds(fixed: str, divided: str) -> Floats:
        parts = [(getattr(of, fixed), getattr(of, divided)) for of in courses]
        once, over = np.array(parts, np.float64).reshape(-1, 2)[which].T
        taken: Floats = once + over / speeds
        return taken

    prices = np.rint(found["price"] * MICRO).astype(np.int64).tolist()
    likely, least = seconds("fixed", "divided"), seconds("fixed_low", "divided_low")
    totals, covered = [], []
    for price, gpus, most, few in zip(
        prices, found["gpus"].tolist(), np.rint(likely).tolist(), least.tolist(), strict=True
    ):
        paid = with_premium(price, bps)
        totals.append(accrued(paid, gpus, int(most)))
        covered.append(accrued(paid, gpus, int(few)) <= request.budget_micros)
    return Costs(
        answer, prices, speeds.tolist(), courses, which.tolist(), likely.tolist(), totals, covered
    )


def _slowest(answer: "Answer", standing: Columns) -> Floats:
    """TFLOP/s that each of a place's GPUs keeps up with: those of its slowest node."""
    nodes = np.unique(answer.shares["node"])
    ids = [standing.lots[node].stands.node for node in nodes.tolist()]
    known = timing.measured_tflops(ids)
    speed = np.zeros(len(standing))
    speed[nodes] = [known.get(node, 0.0) for node in ids]
    if not len(nodes):
        return speed[:0]
    return np.minimum.reduceat(speed[answer.shares["node"]], answer.found["first"])


def _courses(
    plan: Plan, answer: "Answer", standing: Columns, speeds: Floats, now: datetime
) -> tuple[list[Course], Ints]:
    """The courses that the job can take, and which of them it takes in each place."""
    known, (makes, make_of) = paces.expected(plan, now=now), standing.makes

    @cache
    def course(gpu_class: str, slow: bool) -> Course:
        return timing.course(plan, known.get(gpu_class) or unseen(slow=slow))

    first = answer.shares["node"][answer.found["first"]]
    each, _, which = distinct(np.stack([make_of[first], speeds < CPU_TFLOPS], axis=1))
    return [course(makes[make].gpu_class, bool(slow)) for make, slow in each.tolist()], which


def unfit(
    wanted: Wants, plan: Plan, answer: "Answer", standing: Columns, most: int
) -> list[Costed]:
    """The first of what doesn't fit, of which so many are wanted at most: each reason's cheapest
    first, that all reasons are among them."""
    nodes, asks = answer.unfit, standing.rows["ask"][answer.unfit]
    reason, sentences = _reasons(wanted, answer, standing)
    # 1. Of each reason the cheapest, the second cheapest, and so on.
    order = np.lexsort((nodes, asks, reason))
    rank = np.arange(len(order)) - np.searchsorted(reason[order], reason[order])
    # 2. All reasons' cheapest, then all their second cheapest.
    shown = order[np.lexsort((nodes[order], rank))[:most]]
    spent = timing.estimated(plan, tflops=None, gpus=wanted.gpus)
    return [
        Costed([(node, wanted.gpus)], Level.NODE, ask, spent, sentences[why])
        for node, ask, why in zip(
            nodes[shown].tolist(), asks[shown].tolist(), reason[shown].tolist(), strict=True
        )
    ]  # fmt: skip


def _reasons(wanted: Wants, answer: "Answer", standing: Columns) -> tuple[Ints, Sequence[str]]:
    """Why each of the unfit doesn't fit: which of the sentences. Where no rule can see a difference,
    one offer is judged for all."""
    rows, (kinds, kind_of) = standing.rows[answer.unfit], standing.kinds
    limits = [wanted.limits.get(each.gpu_class, 0) for each in kinds]
    kind = kind_of[answer.unfit]
    alike = (
        kind, np.minimum(rows["free"], wanted.gpus), rows["disk"] < wanted.disk_bytes,
        rows["ask"] > np.array(limits, np.int64)[kind],
    )  # fmt: skip
    _, first, which = distinct(np.stack(alike, axis=1).astype(np.int64))
    one_of = [standing.lots[node].stands for node in answer.unfit[first].tolist()]
    numbers: dict[str, int] = {}
    reason = _numbered(numbers, [misfit(wanted, stands) for stands in one_of])[which]
    # What is the engine's to judge.
    left = reason == numbers.get("", -1)
    which, sentences = answer.whys(answer.unfit[left])
    reason[left] = _numbered(numbers, sentences)[which]
    return reason, list(numbers)


def _numbered(numbers: dict[str, int], texts: Sequence[str]) -> Ints:
    """Each text's number; a new text gets the next one."""
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)
