"""What one new order would cost now: the best place for it, every other, and why not elsewhere.

A taken offer starts at once at max(ask, the last round's price of its cell), so nobody has to wait
for a round to know a price. A quote looks at what is free and at prices, never at others' bids; an
order need not be in the book. It is placed by the loops that place a round's jobs: alone in a book,
it is cleared to where it was quoted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np

from marketplace.core.errors import Invalid
from scheduler.matching import asking
from scheduler.matching.arrays import Array, Floats, Ints
from scheduler.matching.book import MOST_GPUS, NODE_GPUS, Book, Order
from scheduler.matching.calling import ready
from scheduler.matching.cells import SLOTS, distinct, slots
from scheduler.matching.desks import desk
from scheduler.matching.explain import Term
from scheduler.matching.hoping import NOTHING
from scheduler.matching.ordering import in_our_order, mixed
from scheduler.matching.placing import ANY, NODE, SITE
from scheduler.matching.saying import LEVELS, unmet
from scheduler.matching.supply import stock, supply
from scheduler.matching.tables import JOB, rows, rules

FOUND: Final = np.dtype(
    [("gain", "f8"), ("surplus", "f8"), ("price", "f8"), ("keeps", "f8"), ("level", "i4"),
     ("gpu_class", "i4"), ("gpus", "i4"), ("first", "i4"), ("parts", "i4")],
    align=True,
)  # fmt: skip
"""A `Candidate` as a row. `price` is its dearest part's, `gpus` are of all parts, and these stand
among the shares from `first` on."""
_TERMS: Final = {
    asking.LIMIT: Term.LIMIT,
    asking.REGION: Term.REGION,
    asking.TRUST: Term.TRUST,
    asking.TIER: Term.TIER,
    asking.WINDOW: Term.WINDOW,
}


class Candidate(NamedTuple):
    """A place for one order. Prices are USD per GPU-hour, sums USD per hour."""

    nodes: tuple[int, ...]  # indexes into the book
    gpus: tuple[int, ...]  # on each of them
    prices: tuple[float, ...]  # on each of them: max(ask, the cell's last price)
    level: int
    gpu_class: int
    keeps: float = 1.0
    """η: the share of their speed that its GPUs keep, in the mean."""
    gain: float = 0.0
    """Σ GPUs · (limit · η − price): none below nothing fits."""
    surplus: float = 0.0
    """The same less what failures cost: what candidates are ranked by, the rest after it by gain."""


@dataclass(frozen=True, eq=False)
class Answer:
    """Every place for an order: what `Quotes.every` found."""

    found: Array
    """[F] of FOUND: those that fit, the best first."""
    shares: Array
    """Their parts, of SHARE; a node by its index into the book."""
    unfit: Ints
    """Nodes that are in no candidate that fits, by their indexes."""
    _of: "Quotes"
    _order: Order
    _rated: Array

    def place(self, at: int) -> Candidate:
        """One of those found."""
        gain, surplus, _, keeps, level, gpu_class, _, first, parts = self.found[at].tolist()
        prices, _, nodes, gpus = zip(*self.shares[first : first + parts].tolist(), strict=True)
        return Candidate(nodes, gpus, prices, level, gpu_class, keeps, gain, surplus)

    def whys(self, nodes: Ints) -> tuple[Ints, list[str]]:
        """Why these of the unfit are: for each, which of the sentences."""
        of, book = self._of, self._of._book
        seat, free = of._seat_of[nodes], book.node_gpus[nodes]
        reason = self._rated["why"][seat]
        price = of._price[seat, np.minimum(free, min(self._order.gpus_min, NODE_GPUS))]
        price[~np.isin(reason, [asking.DEAR, asking.SLOW])] = 0.0
        alike = (
            reason, free, book.node_class[nodes], book.node_tier[nodes],
            book.site_trust[book.node_site[nodes]], np.unique(price, return_inverse=True)[1],
        )  # fmt: skip
        _, first, which = distinct(np.stack(alike, axis=1).astype(np.int64))
        return which, [self.why(node) for node in nodes[first].tolist()]

    def why(self, node: int) -> str:
        """Why one of the unfit is."""
        return self._of._why(self._order, self._rated, node, bool(len(self.found)))


class Quotes:
    """A book made ready for quotes: what stands free, at what prices. For one thread at a time."""

    def __init__(self, book: Book, classes: Sequence[str], last: Floats | None = None) -> None:
        """`classes` are the names of the book's. `last` [N, 4] are the prices of each node's cell in
        the last round, for slots of 1, 2, 4 and 8 GPUs (0: none). Its jobs are of no account."""
        self._book, self._classes = book, list(classes)
        cost = _cost(book, last)
        # Whatever share of a node a gang takes, it pays no more for it.
        dearest = _dearest(book, cost)
        # 1. An order of our own, from ids and prices alone.
        nodes = np.lexsort((mixed(book.node_id, book.params.seed), book.node_gpus, dearest))
        ordered, classes_of = in_our_order(book, np.arange(0), nodes)
        ordered = replace(ordered, node_ask=dearest[nodes].copy())
        # 2. What is on offer, and the cheapest of each kind.
        self._rules = rules(ordered)
        self._sold = supply(ordered)
        seats = self._sold.seats
        self._left = stock(self._sold)
        # From here on seats tell nodes as the book has them.
        seats["node"] = nodes[seats["node"]]
        self._node_of = seats["node"].astype(np.int64)
        self._price = np.ascontiguousarray(cost[self._node_of])
        self._cheapest = asking.table(seats, self._sold.kinds, self._price, len(classes_of))
        self._seat_of = np.empty(book.nodes, np.int64)
        self._seat_of[self._node_of] = np.arange(book.nodes)
        # 3. Room for an order.
        self._called = {self._classes[old]: new for new, old in enumerate(classes_of.tolist())}
        self._number = np.argsort(classes_of)
        self._desk, self._jobs = desk(MOST_GPUS, self._sold, book.params.seed), np.zeros(1, JOB)
        self._limit = np.zeros(len(classes_of))
        self._shares = asking.room_for_shares(max(book.nodes, MOST_GPUS))
        # One by one, for to take rows apart takes twice as long.
        self._parts = tuple(self._shares[name] for name in ("node", "gpus", "price"))

    def best(self, order: Order) -> Candidate | None:
        """The best place; None if the order fits nowhere. Raises Invalid for one without sense. The
        first takes some milliseconds more."""
        self._take(order)
        level, parts, gain, surplus, keeps = self._ask()
        if not parts:
            return None
        nodes, gpus, prices = (tuple(each[:parts].tolist()) for each in self._parts)
        gpu_class = int(self._book.node_class[nodes[0]])
        return Candidate(nodes, gpus, prices, level, gpu_class, keeps, gain, surplus)

    def every(self, order: Order) -> Answer:
        """A place in each node and on each site that can do it alone, and the best over several
        sites; the first is `best`. Raises Invalid for an order without sense."""
        self._take(order)
        sold, book = self._sold, self._book
        rated = asking.ratings(book.nodes)
        asking.rate_nodes(
            self._jobs, self._limit, self._price, self._rules, sold.seats, sold.kinds, rated
        )
        ways = [self._single(rated)]
        if order.gpus_max > 1 and order.level >= SITE:
            ways += [self._gangs(), self._spread()]
        found, shares = (np.concatenate(each) for each in zip(*ways, strict=True))
        found, shares = _ranked(found, shares)
        _sum_up(found, shares)
        found["gpu_class"] = book.node_class[shares["node"][found["first"]]]
        served = np.zeros(book.nodes, bool)
        served[shares["node"]] = True
        return Answer(found, shares, np.flatnonzero(~served), self, order, rated)

    @cached_property
    def _ask(self) -> Callable[[], tuple[int, int, float, float, float]]:
        return ready(
            asking.ask, self._jobs, self._limit, self._cheapest, self._price, self._rules,
            self._sold, self._left, self._desk, self._shares,
        )  # fmt: skip

    def warm_up(self) -> None:
        """Loads all loops of a quote, which takes a second, or more where they have to be compiled."""
        order = Order(0, {}, gpus_max=2, level=ANY)
        self.best(order)
        self.every(order)

    def _single(self, rated: Array) -> tuple[Array, Array]:
        """Candidates in one node, of FOUND, and their shares."""
        alone = np.flatnonzero(rated["why"] == asking.FITS)
        of, nodes = rated[alone], self._node_of[alone]
        kind = self._number[self._book.node_class[nodes]]
        slow = np.where(of["gpus"] > 1, self._rules.in_node[kind], 0.0)
        shares = rows(
            asking.SHARE, price=self._price[alone, of["gpus"]], node=nodes, gpus=of["gpus"],
            keeps=1.0 - float(self._jobs["kappa"][0]) * slow,
        )  # fmt: skip
        one = np.ones(len(of), np.int32)
        return rows(
            FOUND, gain=of["gain"], surplus=of["surplus"], level=NODE * one, parts=one
        ), shares

    def _gangs(self) -> tuple[Array, Array]:
        """The same for those of several nodes on one site."""
        places = asking.ratings(len(self._sold.places))
        asking.rate_places(
            self._jobs, self._limit, self._price, self._rules, self._sold, self._left, self._desk,
            places, self._shares,
        )  # fmt: skip
        of = places[places["parts"] > 0]
        found = rows(
            FOUND, gain=of["gain"], surplus=of["surplus"], parts=of["parts"],
            level=np.full(len(of), SITE),
        )  # fmt: skip
        return found, self._shares[: int(of["parts"].sum())].copy()

    def _spread(self) -> tuple[Array, Array]:
        """And for the best over several sites, if there is one."""
        parts, gain, surplus = asking.ask_over_sites(
            self._jobs, self._limit, self._price, self._rules, self._sold, self._left, self._desk,
            self._shares,
        )  # fmt: skip
        found = np.array([(gain, surplus, 0.0, 0.0, ANY, 0, 0, 0, parts)] if parts else [], FOUND)
        return found, self._shares[:parts].copy()

    def _take(self, order: Order) -> None:
        if not 1 <= order.gpus_min <= order.gpus_max <= MOST_GPUS:
            raise Invalid(f"an order is for 1 to {MOST_GPUS} GPUs", field="gpus")
        self._jobs[0] = (
            order.gpus_min, order.gpus_max, order.level, order.trust, order.tier, order.long,
            order.site_gpus_min, order.sites_max, order.kappa, order.hours_lost, order.sync_mb,
            order.sync_s, order.regions,
        )  # fmt: skip
        limit, called = self._limit, self._called
        limit.fill(0.0)
        for name, most in order.limits.items():
            if name in called:
                limit[called[name]] = most

    def _why(self, order: Order, rated: Array, node: int, served: bool) -> str:
        seat, book = int(self._seat_of[node]), self._book
        reason, free = int(rated["why"][seat]), int(book.node_gpus[node])
        if reason in _TERMS:
            return self._unmet(order, _TERMS[reason], node)
        if reason == asking.LET:
            return "all its GPUs are let"
        if reason == asking.SMALL:
            return f"it has {free} GPUs free; you need {order.gpus_min} in one node"
        if reason in {asking.DEAR, asking.SLOW}:
            return self._dear(order, node, min(free, order.gpus_min), slow=reason == asking.SLOW)
        if served:
            return (
                f"it has {free} GPUs free, and other nodes make a better gang of {order.gpus_min}"
            )
        return (
            f"it has {free} GPUs free, and with the others that you accept {LEVELS[order.level]}"
            f" there are fewer than {order.gpus_min} worth their price"
        )

    def _unmet(self, order: Order, term: Term, node: int) -> str:
        book = self._book
        called = self._classes[book.node_class[node]]
        site = book.node_site[node]
        if term is Term.TRUST:
            return unmet(term, gpu_class=called, has=int(book.site_trust[site]), wants=order.trust)
        return unmet(term, gpu_class=called, has=int(book.node_tier[node]), wants=order.tier)

    def _dear(self, order: Order, node: int, gpus: int, *, slow: bool) -> str:
        price = float(self._price[self._seat_of[node], gpus])
        limit = order.limits[self._classes[self._book.node_class[node]]]
        if not slow:
            return f"it costs {price:.4g} per GPU-hour; your limit is {limit:.4g}"
        kind = self._number[self._book.node_class[node]]
        speed = 1.0 - order.kappa * float(self._rules.in_node[kind])
        return (
            f"it costs {price:.4g} per GPU-hour; {gpus} GPUs run at {speed:.0%} of their speed in"
            f" this node, where your limit of {limit:.4g} is worth {limit * speed:.4g}"
        )


def _sum_up(found: Array, shares: Array) -> None:
    """Fills in what follows from the shares."""
    first = found["first"]
    if not len(found):
        return
    gpus = np.add.reduceat(shares["gpus"], first)
    mean = np.add.reduceat(shares["keeps"] * shares["gpus"], first) / gpus
    found["gpus"], found["price"] = gpus, np.maximum.reduceat(shares["price"], first)
    found["keeps"] = np.where(found["level"] == ANY, mean, shares["keeps"][first])


def _ranked(found: Array, shares: Array) -> tuple[Array, Array]:
    """The best first: by surplus; then those that failures leave none, by gain; of equals the one in
    fewer parts. The shares stand in the same order."""
    gains = found["surplus"] > NOTHING
    score = np.where(gains, found["surplus"], found["gain"])
    order = np.lexsort((found["parts"], -score, ~gains))
    stood = (np.cumsum(found["parts"]) - found["parts"])[order]
    found = found[order]
    found["first"] = np.cumsum(found["parts"]) - found["parts"]
    moved = np.repeat(stood - found["first"], found["parts"])
    return found, shares[np.arange(len(shares)) + moved]


def _cost(book: Book, last: Floats | None) -> Floats:
    """[N, 17] price per GPU-hour of so many GPUs of a node: the mean over its slots."""
    price = np.repeat(book.node_ask[:, None], len(SLOTS), axis=1)
    if last is not None:
        price = np.maximum(price, last)
    cost = np.repeat(price[:, :1], NODE_GPUS + 1, axis=1)
    # A mean of equal floats may fall a hair beside them.
    uneven = np.flatnonzero((price != price[:, :1]).any(axis=1))
    price, ask = price[uneven], book.node_ask[uneven]
    for gpus in range(2, NODE_GPUS + 1):
        mean = sum(size * price[:, SLOTS.index(size)] for size in slots(gpus)) / gpus
        cost[uneven, gpus] = np.maximum(mean, ask)
    return cost


def _dearest(book: Book, cost: Floats) -> Floats:
    """[N] the most that a GPU of a node costs, however many one takes."""
    within = np.arange(NODE_GPUS + 1) <= np.maximum(book.node_gpus, 1)[:, None]
    dearest: Floats = np.where(within, cost, 0.0).max(axis=1)
    return dearest
