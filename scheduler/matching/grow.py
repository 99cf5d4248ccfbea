"""Which elastic gang that runs should take which idle GPUs beside it.

Apart from the round and its certificate, as displacement is: what a round has left idle nobody who
waits gains by. A gang can't be handed a GPU while it runs: it saves, leaves, and begins again larger,
on what it had and what it adds. It does so when the market gains by it, in USD per hour:

    gain = Σ GPUs · (limit · η − risk − ask)  of the larger gang − the same as it runs now
           − what the move costs / the hours that it is spread over

The move costs what the gang is worth while it doesn't run, so that the gain must be earned back
before the job ends. The gain must be at least `least_gain` of the larger gang's surplus, and the job
must be able to pay each supplier what he asks, and those whom it has what it pays them.

A gang grows in its own nodes, or, if it accepts that and gains more by it, over others of its site and
class. The largest gain goes first, each gang grows once, and no GPU is promised twice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from marketplace.core.errors import Invalid
from scheduler.matching import values
from scheduler.matching.arrays import Bools, Floats, Ints
from scheduler.matching.book import Book, Order
from scheduler.matching.placing import SITE


@dataclass(frozen=True, eq=False)
class Elastic:
    """Gangs that run on less than they could use; a row [R] for each node of each."""

    orders: Sequence[Order]
    """Each gang's, with one limit, and with `level` and `gpus_max` as far as it may grow."""
    gang: Ints  # [R] index into orders
    node: Ints  # [R] index into the book
    gpus: Ints  # [R]
    price: Floats  # [R] USD per GPU-hour that it pays
    accepts: Bools  # [G, N] nodes that would do for it
    idle_h: Floats  # [G] hours that it doesn't run while it moves
    over_h: Floats  # [G] hours over which that must be earned back

    def __post_init__(self) -> None:
        """Raises Invalid naming the column at fault."""
        for name in ("node", "gpus", "price"):
            if len(getattr(self, name)) != len(self.gang):
                raise Invalid(f"{name} is not as long as gang", field=name)
        for name in ("accepts", "idle_h", "over_h"):
            if len(getattr(self, name)) != len(self.orders):
                raise Invalid(f"{name} is not as long as orders", field=name)
        if (self.over_h <= 0).any():
            raise Invalid("a move must be earned back in some time", field="over_h")


@dataclass(frozen=True)
class Growth:
    """A gang, and what it has then: GPUs on each of these nodes, those it has among them."""

    gang: int
    nodes: tuple[int, ...]
    gpus: tuple[int, ...]
    gain: float
    """USD per hour."""


def grow(book: Book, running: Elastic, *, least_gain: float) -> list[Growth]:
    """Who should grow, the largest gain first. `book.node_gpus` is what is idle; its jobs are not
    asked."""
    free = book.node_gpus.astype(np.int64)
    yard = _Yard(book, running, free, least_gain)
    waiting = [best for gang in range(len(running.orders)) if (best := yard.best(gang))]
    found = []
    while waiting:
        waiting.sort(key=lambda each: (each.gain, -each.gang))
        first = waiting.pop()
        # Others may have taken of what it wanted. A gain can only have fallen.
        again = yard.best(first.gang)
        if again == first:
            found.append(first)
            yard.take(first)
        elif again is not None:
            waiting.append(again)
    return found


class _Yard:
    """What is idle, and what of it is promised by now."""

    def __init__(self, book: Book, running: Elastic, free: Ints, least_gain: float) -> None:
        self.book, self.running, self.free, self.least_gain = book, running, free, least_gain
        self.surplus, self.value = values.of_gangs(
            book, running.orders, running.gang, running.node, running.gpus
        )
        # Node → GPUs that each gang has, and what it pays for each, USD per hour.
        self.has: list[dict[int, int]] = [{} for _ in running.orders]
        self.pays: list[dict[int, float]] = [{} for _ in running.orders]
        columns = (running.gang, running.node, running.gpus, running.price)
        for gang, node, gpus, price in zip(*(each.tolist() for each in columns), strict=True):
            self.has[gang][node], self.pays[gang][node] = gpus, price

    def best(self, gang: int) -> Growth | None:
        """The growth that gains most; None where none gains enough."""
        found = [each for layout in self._layouts(gang) if (each := self._judged(gang, layout))]
        return max(found, key=lambda each: each.gain, default=None)

    def take(self, growth: Growth) -> None:
        for node, gpus in zip(growth.nodes, growth.gpus, strict=True):
            self.free[node] -= gpus - self.has[growth.gang].get(node, 0)

    def _layouts(self, gang: int) -> Iterator[dict[int, int]]:
        """Node → GPUs: all it can have in its own nodes; and over its site as well."""
        order, has = self.running.orders[gang], self.has[gang]
        own = self._filled(has, self._by_ask(np.array(list(has))), order.gpus_max)
        if own != has:
            yield own
        sites = {int(self.book.node_site[node]) for node in has}
        if order.level < SITE or len(sites) > 1 or sum(own.values()) >= order.gpus_max:
            return
        first = next(iter(has))
        near = (
            (self.book.node_site == self.book.node_site[first])
            & (self.book.node_class == self.book.node_class[first])
            & (self.book.node_ask < max(order.limits.values()))
            & self.running.accepts[gang]
        )
        others = np.setdiff1d(np.flatnonzero(near), list(has))
        wide = self._filled(own, self._by_ask(others), order.gpus_max)
        if wide != own:
            yield wide

    def _by_ask(self, nodes: Ints) -> list[int]:
        ranked: list[int] = nodes[np.lexsort((nodes, self.book.node_ask[nodes]))].tolist()
        return ranked

    def _filled(self, has: dict[int, int], nodes: Sequence[int], most: int) -> dict[int, int]:
        """With what is free of these nodes, one after the other, up to so many in all."""
        found, left = dict(has), most - sum(has.values())
        for node in nodes:
            part = min(left, int(self.free[node]))
            if part > 0:
                found[node] = found.get(node, 0) + part
                left -= part
        return found

    def _judged(self, gang: int, layout: dict[int, int]) -> Growth | None:
        running, order = self.running, self.running.orders[gang]
        nodes, gpus = (np.array(each) for each in zip(*sorted(layout.items()), strict=True))
        one = np.zeros(len(nodes), np.int64)
        surplus, value = values.of_gangs(self.book, [order], one, nodes, gpus)
        cost = self.value[gang] * running.idle_h[gang] / running.over_h[gang]
        gain = float(surplus[0] - self.surplus[gang] - cost)
        able = value[0] >= (gpus * self._price(gang, nodes)).sum()
        if gain <= 0 or gain < self.least_gain * surplus[0] or not able:
            return None
        return Growth(gang, tuple(nodes.tolist()), tuple(gpus.tolist()), gain)

    def _price(self, gang: int, nodes: Ints) -> Floats:
        """What it would pay at least on each: what is asked, and where it is what it pays now."""
        paid = [self.pays[gang].get(node, 0.0) for node in nodes.tolist()]
        return np.maximum(self.book.node_ask[nodes], paid)
