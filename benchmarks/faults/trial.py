"""One job under one fault: what it lost, how long it stood still, and what it cost."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults.cable import Cable
from benchmarks.faults.script import PACE_S, SAVE_EVERY_S, TEXT
from buyers.sdk import Client
from buyers.sdk.job_shapes import Job, Point, ReceiptLine
from marketplace.devstack.live import LiveSite

PATIENCE_S = 300.0
_POLL_S = 0.2


@dataclass
class World:
    """A site with nodes, perhaps each behind a cable, and a buyer with money and a project."""

    site: LiveSite
    buyer: Client
    project: str
    cables: Mapping[str, Cable] = field(default_factory=dict)

    @classmethod
    def of(cls, site: LiveSite, buyer: Client, folder: Path) -> "World":
        """Uploads the project."""
        project = folder / "line"
        project.mkdir(parents=True, exist_ok=True)
        (project / "main.py").write_text(TEXT)
        return cls(site, buyer, str(buyer.upload(project, "line").id))


Strike = Callable[[World, Job], Callable[[], None] | None]
"""Does harm to the node that runs a job, or to the market; what it returns mends the rest."""


@dataclass(frozen=True)
class Outcome:
    """What came of one job. Seconds by the job's own clock; micros."""

    state: str
    words: str
    steps: int
    losses: Mapping[int, float]
    """Step → loss."""
    seconds: float
    """From its first step to its last, whoever ran it."""
    gap_s: float
    """The longest time without a step that had not been done before, from the fault on."""
    lost_steps: int
    attempts: int
    ends: tuple[str, ...]
    paid_s: float
    """Seconds of running that were paid in the end: billed, less credits."""
    balanced: bool
    """The ledger sums to zero, and the wallet lost what the receipt says."""


def run(world: World, strike: Strike | None, *, steps: int, at_step: int = 0) -> Outcome:
    """Runs the job; `strike` comes once `at_step` is done and a checkpoint is safe."""
    buyer = world.buyer
    before = buyer.wallet()
    job = buyer.bid(
        recipe="script", script=world.project, parameters={"entry": "main.py", "args": [str(steps)]},
        budget="0.50", limit="2.00", memory_gib=0.5, disk_gib=0.5, hours=steps * PACE_S / 3600,
    )  # fmt: skip
    struck_at, mend = 0.0, None
    if strike is not None:
        _wait(world, job, lambda: _is_ready(buyer, job, at_step))
        struck_at = time.time()
        mend = strike(world, buyer.job(job))
    try:
        _wait(world, job, lambda: buyer.job(job).rests)
    finally:
        if mend is not None:
            mend()
    done, receipt = buyer.job(job), buyer.receipt(job)
    after = buyer.wallet()
    points = curve(buyer, job)
    (audit,) = world.site.supervisor.run(world.site.stack.command("audit"))
    paid = before.balance_micros - after.balance_micros
    return Outcome(
        state=done.state,
        words=done.words,
        steps=len({point.step for point in points}),
        losses={point.step: point.values["loss"] for point in points},
        seconds=_span(points),
        gap_s=_gap(points, struck_at),
        lost_steps=len(points) - len({point.step for point in points}),
        attempts=len(receipt.lines),
        ends=tuple(line.end_reason for line in receipt.lines),
        paid_s=sum(map(_paid_s, receipt.lines)),
        balanced=audit.strip() == "0"
        and after.held_micros == 0
        and paid == receipt.total_micros == done.spent_micros,
    )


def complaints(outcome: Outcome, alone: Outcome, *, steps: int) -> list[str]:
    """What is not as promised; empty where all is well."""
    interval = SAVE_EVERY_S / PACE_S
    # Each attempt may start and save on its buyer's time, and be billed to the next second.
    most_paid_s = steps * alone.seconds / alone.steps + alone.paid_s - alone.seconds
    most_paid_s += outcome.attempts * 3.0 + outcome.lost_steps * PACE_S + 1
    loss, expected = outcome.losses.get(steps, math.nan), alone.losses[steps]
    found = {
        f"it {outcome.state}: {outcome.words}": outcome.state != "succeeded",
        f"{outcome.steps} of {steps} steps are on its curve": outcome.steps != steps,
        f"its loss is {loss}, undisturbed {expected}": not abs(loss - expected) <= 0.02 * expected,
        # What was written and not yet safe elsewhere goes with a machine: one interval, and the
        # second in which it is seen, sent and committed.
        f"it lost {outcome.lost_steps} steps": outcome.lost_steps > interval + 2.0 / PACE_S,
        f"{outcome.paid_s:.0f} s were paid": outcome.paid_s > most_paid_s,
        "the books don't balance": not outcome.balanced,
    }
    return [words for words, is_so in found.items() if is_so]


def curve(buyer: Client, job: Job) -> list[Point]:
    """All points of all attempts, in the order in which they were made."""
    points: dict[tuple[int, int], Point] = {}
    after = "0.0"
    while True:
        more = buyer.metrics(job, after=after)
        fresh = [p for p in more.points if (p.epoch, p.step) not in points]
        points |= {(p.epoch, p.step): p for p in more.points}
        if not fresh or more.next == after:
            return [point for _, point in sorted(points.items()) if "at" in point.values]
        after = more.next


def _paid_s(line: ReceiptLine) -> float:
    back = sum(credit.micros for credit in line.credits)
    return line.seconds - back * 3600 / line.price_micros


def _is_ready(buyer: Client, job: Job, step: int) -> bool:
    points = buyer.metrics(job).points
    return bool(buyer.checkpoints(job)) and bool(points) and points[-1].step >= step


def _wait(world: World, job: Job, true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"it is still: {world.buyer.job(job).words}")
        time.sleep(_POLL_S)


def _span(points: Sequence[Point]) -> float:
    times = [point.values["at"] for point in points]
    return max(times) - min(times) if times else 0.0


def _gap(points: Sequence[Point], struck_at: float) -> float:
    furthest, gap, since = 0, 0.0, struck_at
    for point in sorted(points, key=lambda one: one.values["at"]):
        if point.step > furthest:
            if point.values["at"] > struck_at:
                gap = max(gap, point.values["at"] - since)
                since = point.values["at"]
            furthest = point.step
    return gap if struck_at else 0.0
