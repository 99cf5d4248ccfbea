"""The market with displacement: after each round, who may be displaced makes room for who gains more.

By the rule of `scheduler.matching.displace` and the policy that the market has. What the market does in
steps is done here so:

- victims stop at once, and nothing is saved for them then: each loses what it has done since its last
  checkpoint, one each 2 · `job_hours_lost`, and to start again takes it as long as `costs` reckons;
- what they lost has cost its owners their asks, and brought nothing; so will starting again;
- their GPUs stand idle until the next round, in which the job for which they left begins on them;
- victims wait again, with what they have left to do, and aren't displaced again for an hour.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.market.arrivals import Leases, Rows, Run
from benchmarks.market.costs import STARTING_HOURS
from marketplace.core.money import BASIS_POINTS
from marketplace.core.policy import Policy
from scheduler.matching.displace import Displacement, Rules, Running, displace
from scheduler.matching.placing import NODE, SITE
from scheduler.matching.values import Parts, of_rows

_POLICY: Final = Policy()
_RULES: Final = Rules(
    least_age_h=_POLICY.displace_after_s / 3600,
    least_gain=_POLICY.least_gain_bps / BASIS_POINTS,
    stay_h=_POLICY.displace_stay_s / 3600,
)
_MOST: Final = 300
"""As the market does it: so many jobs, the highest limits first, for which a round looks for room."""


@dataclass
class Leaving(Run):
    """A run in which those of `may` [J] are interruptible."""

    may: np.ndarray

    def __post_init__(self) -> None:
        super().__post_init__()
        self.left_at = np.full(self.book.jobs, -np.inf)
        self.kept: list[Rows] = []
        """Each a job for which room was made, and where."""

    def turn(self, now: float) -> None:
        """Who has been made room for begins, then comes the round, then room is made."""
        for rows in self.kept:
            np.add.at(self.free, rows.node, rows.gpus)
            self.start(now, rows)
        self.kept = []
        super().turn(now)
        self._make_room(now)

    def _make_room(self, now: float) -> None:
        jobs = self.waiting(now)
        best = self.book.job_limit[jobs].max(axis=1)
        jobs = jobs[np.argsort(-best, kind="stable")[:_MOST]]
        leases = self.running
        if not len(jobs) or not self.may[leases.job].any():
            return
        gangs, gang = np.unique(leases.job, return_inverse=True)
        book = self.seen(now, jobs, np.arange(self.book.nodes))
        found = displace(book, np.arange(len(jobs)), self._running(now, gangs, gang), _RULES)
        for each in found:
            leave = np.isin(leases.job, gangs[list(each.gangs)])
            self.kept.append(self._room(int(jobs[each.job]), each, leases.where(leave)))
        stopped = np.isin(self.running.job, gangs[[g for each in found for g in each.gangs]])
        self._stop(now, stopped)
        for rows in self.kept:
            np.subtract.at(self.free, rows.node, rows.gpus)
        assert (self.free >= 0).all()

    def _running(self, now: float, gangs: np.ndarray, gang: np.ndarray) -> Running:
        """What runs, as the rule reads it."""
        leases, book = self.running, self.book
        surplus = np.bincount(gang, leases.gpus * leases.gain)
        value = np.bincount(gang, leases.gpus * (leases.gain + book.node_ask[leases.node]))
        stays = now - self.left_at[gangs] < _POLICY.displace_stay_s
        return Running(
            gang, leases.node, leases.gpus,
            surplus=surplus[gang],
            lost=(value * self._unsaved(now, gangs))[gang],
            age_h=((now - self.started[gangs]) / 3600)[gang],
            interruptible=(self.may[gangs] & ~stays)[gang],
            price=leases.price,
        )  # fmt: skip

    def _unsaved(self, now: float, jobs: np.ndarray) -> np.ndarray:
        """[jobs] hours since the last checkpoint."""
        every = np.maximum(2 * self.book.job_hours_lost[jobs].astype(float), 1e-9)
        return np.asarray(np.fmod((now - self.started[jobs]) / 3600, every))

    def _room(self, job: int, each: Displacement, leaving: Leases) -> Rows:
        """Where a job begins, and what it gains there: it pays what was paid."""
        book, count = self.book, len(each.nodes)
        node = np.array(each.nodes)
        columns = (book.job_kappa, book.job_hours_lost, book.job_sync_mb, book.job_sync_s)
        value, risk = of_rows(book, Parts(
            node, np.full(count, sum(each.gpus)), np.full(count, NODE if count == 1 else SITE),
            book.job_limit[job, book.node_class[node]],
            *(np.full(count, float(column[job])) for column in columns),
        ))  # fmt: skip
        price = np.maximum(book.node_ask[node], leaving.price.max())
        gain = value - risk - book.node_ask[node]
        return Rows(np.full(count, job), node, np.array(each.gpus), gain, price)

    def _stop(self, now: float, rows: np.ndarray) -> None:
        """These leave: what they would have gained from now on they don't; what they have done since
        their checkpoints was in vain, and so will be what they do to start again."""
        leases = self.running.where(rows)
        lost = self._unsaved(now, leases.job) + STARTING_HOURS
        ahead = (np.minimum(leases.end, self.horizon) - now) / 3600
        self.count(leases.gpus, leases.gain, -ahead)
        brought = leases.gain + self.book.node_ask[leases.node]
        self.welfare -= float((leases.gpus * brought * lost).sum())
        self.lost_gpu_hours += float((leases.gpus * lost).sum())
        np.add.at(self.free, leases.node, leases.gpus)
        jobs, first = np.unique(leases.job, return_index=True)
        self.waited[jobs] += self.started[jobs] - self.since[jobs]
        self.left[jobs] = leases.end[first] - now + 3600 * lost[first]
        self.since[jobs], self.left_at[jobs], self.started[jobs] = now, now, np.nan
        self.leaves += len(jobs)
        self.running = self.running.where(~rows)
