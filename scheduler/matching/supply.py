"""Nodes in the order in which they are tried, and what is left of them.

A single node is found by its kind: all that decides whether a job accepts it. Within a kind nodes
stand by ask, and a tree of maxima over their free GPUs finds the first that has enough in some
twenty steps; for 1, 2, 4, 8 and 16 GPUs it is known without looking. Places, a class on a site, are
ranked by what their cheapest GPUs ask, for each power of two.
"""

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Ints, Record
from scheduler.matching.book import NODE_GPUS, Book
from scheduler.matching.cells import told_apart
from scheduler.matching.ordering import in_groups, sorted_by
from scheduler.matching.tables import TIERS, rows

DOUBLINGS: Final = 13
"""Gangs have up to 4096 GPUs."""
SIZES: Final = 5
"""1, 2, 4, 8 and 16 GPUs in one node."""
NETS: Final = 3
_FEW: Final = 32
"""Nodes of a place, up to which they are put in order one by one."""

SEAT: Final = np.dtype(
    [
        ("ask", "f8"), ("price", "f8", (4,)), ("node", "i4"), ("kind", "i4"), ("place", "i4"),
        ("tier", "i4"), ("long", "i4"), ("gpus", "i4"), ("shelved", "i4"),
    ],
    align=True,
)  # fmt: skip
"""A node in our order; `node` is its place in the book, `price` the guiding one of its cell."""
SHELVED: Final = np.dtype(
    [
        ("ask", "f8"),
        ("price", "f8", (4,)),
        ("seat", "i4"),
        ("tier", "i4"),
        ("long", "i4"),
        ("free", "i4"),
    ],
    align=True,
)
"""What gangs read of a seat, side by side with its neighbours; `price` that of its cell."""
KIND: Final = np.dtype(
    [(name, "i4") for name in ("gpu_class", "tier", "region", "trust", "long", "first", "end")]
)
PLACE: Final = np.dtype(
    [("uplink", "f8")]
    + [(name, "i4") for name in ("gpu_class", "region", "trust", "net", "first", "end")]
    + [("cheapest", "f8", (2 * TIERS,))],
    align=True,
)
"""`cheapest`: what a GPU of each tier costs at least, be it free or not, by 2 · tier + long; the first of
the two is of both windows."""
RANKED: Final = np.dtype(
    [("ask", "f8"), ("uplink", "f8"), ("place", "i4"), ("region", "i2"), ("trust", "i2")],
    align=True,
)
"""What most places are passed over for stands here: who looks through hundreds finds it side by side."""
PART: Final = np.dtype([("seat", "i4"), ("gpus", "i4")])


class Supply(NamedTuple):
    """What does not change while a book is cleared."""

    seats: Array
    kinds: Array
    places: Array
    shelf: Array
    """Seats by place, in each by ask: from `first` to `end`; all of them free."""
    ranked: Array
    """Places by the mean ask of their cheapest GPUs, or by what they cost whom prices guide."""
    rank_start: Ints
    """[class, net, worst tier, doubling] where in `ranked` they begin."""


class Stock(NamedTuple):
    """What is left, and who has the rest."""

    free: Ints
    tree: Ints
    head: Ints
    """[kind, size] the first seat with so many free GPUs, else the kind's end."""
    tenants: Ints
    """[seat, …] jobs, of which `tenant_count` are there."""
    tenant_count: Ints
    shelf: Array
    there: Ints
    """[place, 2 · tier + long] free GPUs for a job that accepts that tier and asks for that window."""


def supply(book: Book) -> Supply:
    """At no prices. The book's nodes stand by ask, among equals by free GPUs, the fewest first: as they
    do, they are tried."""
    site, classes = book.node_site, len(book.class_nvlink)
    columns = (
        book.node_class, book.node_tier, book.site_region[site], book.site_trust[site],
        book.node_long,
    )  # fmt: skip
    first, kind = told_apart(*columns)
    order, start = in_groups(kind, len(first))
    gpu_class, tier, region, trust, long = (column[first] for column in columns)
    kinds = rows(
        KIND, gpu_class=gpu_class, tier=tier, region=region, trust=trust, long=long,
        first=start[:-1], end=start[1:],
    )  # fmt: skip
    first, place = told_apart(book.node_class, site)
    shelved, start = in_groups(place, len(first))
    where = site[first]
    places = rows(
        PLACE, gpu_class=book.node_class[first], region=book.site_region[where],
        trust=book.site_trust[where], net=book.site_net[where], uplink=book.site_up_mbps[where],
        first=start[:-1], end=start[1:],
    )  # fmt: skip
    seats, shelf = np.zeros(book.nodes, SEAT), np.zeros(book.nodes, SHELVED)
    terms = book.node_tier, book.node_long, book.node_gpus
    _seat(order, kind, place, book.node_ask, *terms, seats)
    _shelve(shelved, order, seats, shelf)
    by_ask = np.arange(book.nodes)
    return Supply(
        seats, kinds, places, shelf, *_ranks(classes, places, shelf, by_ask, shelf["ask"])
    )


def ranked_by_prices(of: Supply, guide: float) -> Supply:
    """The same with its places ranked by what their GPUs cost whom prices guide so much (0 to 1): such
    gangs find the best at once, and soon know that no other is better."""
    shelf = of.shelf
    cost = np.maximum(shelf["ask"], guide * shelf["price"][:, 0])
    by_cost = np.arange(len(shelf))
    places = of.places.copy()
    _sort_places(places, cost, by_cost)
    classes = len(of.rank_start) // (NETS * TIERS * DOUBLINGS)
    ranked, start = _ranks(classes, places, shelf, by_cost, cost)
    return of._replace(places=places, ranked=ranked, rank_start=start)


@njit(cache=True, nogil=True)
def _sort_places(places: Array, cost: Floats, order: Ints) -> None:
    """Puts each place's part of the shelf, which stands by ask, in the order of what it costs."""
    for at in range(len(places)):
        first, end = places[at].first, places[at].end
        if end - first > _FEW:
            order[first:end] = first + np.argsort(cost[first:end], kind="mergesort")
            continue
        for one in range(first + 1, end):
            to = one
            while to > first and cost[order[to - 1]] > cost[one]:
                order[to] = order[to - 1]
                to -= 1
            order[to] = one


@njit(cache=True, nogil=True)
def _seat(
    order: Ints, kind: Ints, place: Ints, ask: Floats, tier: Ints, long: Ints, gpus: Ints,
    seats: Array,
) -> None:  # fmt: skip
    """Fills the seats, which stand in this order of the nodes."""
    for at in range(len(order)):
        node, seat = order[at], seats[at]
        seat.ask, seat.node, seat.kind, seat.place = ask[node], node, kind[node], place[node]
        seat.tier, seat.long, seat.gpus = tier[node], long[node], gpus[node]


@njit(cache=True, nogil=True)
def _shelve(shelved: Ints, order: Ints, seats: Array, shelf: Array) -> None:
    """Fills the shelf, on which nodes stand in the order `shelved`, and tells seats where."""
    seat_of = np.empty(len(order), np.int32)
    for at in range(len(order)):
        seat_of[order[at]] = at
    for at in range(len(shelved)):
        one, here = seat_of[shelved[at]], shelf[at]
        seat = seats[one]
        seat.shelved = at
        here.ask, here.seat, here.tier, here.long = seat.ask, one, seat.tier, seat.long
        here.free = seat.gpus


def _ranks(
    classes: int, places: Array, shelf: Array, stand: Ints, cost: Floats
) -> tuple[Array, Ints]:
    """Places by what they cost: the ranks of each list, and where the lists begin. The shelf's GPUs
    cost so much, and in each place they `stand` by that."""
    lists = classes * NETS * TIERS * DOUBLINGS
    _find_cheapest(places, shelf, cost)
    number, place, mean = _means(places, shelf, stand, cost)
    order = sorted_by(mean)
    ranked = np.empty(len(order), RANKED)
    return ranked, _rank(places, order, number, place, mean, lists, ranked)


@njit(cache=True, nogil=True)
def _rank(
    places: Array, order: Ints, number: Ints, place: Ints, mean: Floats, lists: int, ranked: Array
) -> Ints:  # fmt: skip
    """Fills `ranked`, list by list in this order; where each of them begins."""
    by_list, start = in_groups(number[order], lists)
    for at in range(len(order)):
        one = order[by_list[at]]
        where, here = places[place[one]], ranked[at]
        here.ask, here.uplink, here.place = mean[one], where.uplink, place[one]
        here.region, here.trust = where.region, where.trust
    return start


@njit(cache=True, nogil=True)
def _find_cheapest(places: Array, shelf: Array, cost: Floats) -> None:
    """Tells each place what its cheapest GPUs cost."""
    for at in range(len(places)):
        place = places[at]
        place.cheapest[:] = np.inf
        for one in range(place.first, place.end):
            if shelf[one].free:
                for of in range(2 * shelf[one].tier, 2 * shelf[one].tier + 1 + shelf[one].long):
                    place.cheapest[of] = min(place.cheapest[of], cost[one])


@njit(cache=True, nogil=True)
def _means(
    places: Array, shelf: Array, stand: Ints, cost: Floats
) -> tuple[Ints, Ints, Floats]:  # fmt: skip
    """(list, place, mean cost of its cheapest GPUs, as many as the list is for) of each place in each
    list."""
    most = len(places) * TIERS * DOUBLINGS
    number, which, mean = np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most)
    found = 0
    for at in range(len(places)):
        place = places[at]
        for worst in range(TIERS):
            list_of = ((place.gpu_class * NETS + place.net) * TIERS + worst) * DOUBLINGS
            power, gpus, paid = 0, 0, 0.0
            for at_cost in range(place.first, place.end):
                one = stand[at_cost]
                left = shelf[one].free if shelf[one].tier <= worst else 0
                while left > 0 and power < DOUBLINGS:
                    take = min(left, (1 << power) - gpus)
                    gpus, paid, left = gpus + take, paid + take * cost[one], left - take
                    if gpus == 1 << power:
                        number[found], which[found] = list_of + power, at
                        mean[found] = paid / gpus
                        found += 1
                        power += 1
    return number[:found], which[:found], mean[:found]


def stock(of: Supply) -> Stock:
    """All of it free."""
    leaves = 1
    while leaves < max(len(of.seats), 2):
        leaves *= 2
    free = of.seats["gpus"].copy()
    tree = np.zeros(2 * leaves, np.int32)
    tree[leaves : leaves + len(free)] = free
    while leaves > 1:
        leaves //= 2
        tree[leaves : 2 * leaves] = tree[2 * leaves : 4 * leaves].reshape(-1, 2).max(axis=1)
    head = np.empty((len(of.kinds), SIZES), np.int32)
    _heads(of.kinds, tree, head)
    tenants = np.zeros((len(free), NODE_GPUS), np.int32)
    there = np.zeros((len(of.places), 2 * TIERS), np.int32)
    _count_all(there, of.seats)
    none = np.zeros(len(free), np.int32)
    return Stock(free, tree, head, tenants, none, of.shelf.copy(), there)


@njit(cache=True, nogil=True)
def priced(seats: Array, shelf: Array, price: Floats) -> None:
    """Seats and a shelf of theirs are guided by other prices [N, 4]."""
    for at in range(len(seats)):
        seat, here = seats[at], shelf[seats[at].shelved]
        for slot in range(4):
            seat.price[slot] = price[seat.node, slot]
            here.price[slot] = price[seat.node, slot]


@njit(cache=True, nogil=True)
def _heads(kinds: Array, tree: Ints, head: Ints) -> None:
    for kind in range(len(kinds)):
        for size in range(SIZES):
            head[kind, size] = first_with(tree, kinds[kind].first, kinds[kind].end, 1 << size)


@njit(cache=True, nogil=True)
def first_with(tree: Ints, first: int, end: int, gpus: int) -> int:
    """The first seat from `first` on with so many free GPUs; `end` if none stands before it."""
    if first >= end:
        return end
    leaves = len(tree) // 2
    at = leaves + first
    if tree[at] < gpus:
        # 1. Up, until something to the right has them.
        while at & 1 or tree[at + 1] < gpus:
            at >>= 1
            if at <= 1:
                return end
        at += 1
        # 2. Down to the first of it.
        while at < leaves:
            at *= 2
            if tree[at] < gpus:
                at += 1
    return min(at - leaves, end)


@njit(cache=True, nogil=True, forceinline=True)
def held(seat: Record, guide: float, free: int) -> float:
    """What so many free GPUs of a seat are worth to others, USD per hour: in the largest slots, each
    at its price or, where that is more, at what its owner asks."""
    total = free // 8 * 8 * max(seat.ask, guide * seat.price[3])
    for slot in range(3):
        if free & (1 << slot):
            total += (1 << slot) * max(seat.ask, guide * seat.price[slot])
    return float(total)


@njit(cache=True, nogil=True, forceinline=True)
def taken(seat: Record, guide: float, free: int, gpus: int) -> float:
    """What so many of its free GPUs cost: by so much the rest is worth less."""
    return held(seat, guide, free) - held(seat, guide, free - gpus)


@njit(cache=True, nogil=True, forceinline=True)
def let(seats: Array, kinds: Array, of: Stock, job: int, parts: Array) -> None:
    """Gives a job its parts."""
    free, tree, head, tenants, count, shelf, there = of
    for one in range(len(parts)):
        seat, before = parts[one].seat, free[parts[one].seat]
        after = before - parts[one].gpus
        _set(free, tree, seat, after)
        shelf[seats[seat].shelved].free = after
        _count(there, seats[seat], after - before)
        kind = seats[seat].kind
        for size in range(SIZES):
            if before >= 1 << size > after and head[kind, size] == seat:
                head[kind, size] = first_with(tree, seat + 1, kinds[kind].end, 1 << size)
        tenants[seat, count[seat]] = job
        count[seat] += 1


@njit(cache=True, nogil=True, forceinline=True)
def give_back(seats: Array, of: Stock, job: int, parts: Array) -> None:
    """Takes them from it again."""
    free, tree, head, tenants, count, shelf, there = of
    for one in range(len(parts)):
        seat, before = parts[one].seat, free[parts[one].seat]
        after = before + parts[one].gpus
        _set(free, tree, seat, after)
        shelf[seats[seat].shelved].free = after
        _count(there, seats[seat], after - before)
        kind = seats[seat].kind
        for size in range(SIZES):
            if after >= 1 << size > before and seat < head[kind, size]:
                head[kind, size] = seat
        last = count[seat] - 1
        for at in range(last):
            if tenants[seat, at] == job:
                tenants[seat, at] = tenants[seat, last]
                break
        count[seat] = last


@njit(cache=True, nogil=True)
def _count_all(there: Ints, seats: Array) -> None:
    for at in range(len(seats)):
        _count(there, seats[at], seats[at].gpus)


@njit(cache=True, nogil=True, forceinline=True)
def _count(there: Ints, seat: Record, gpus: int) -> None:
    """So many GPUs more are free in a seat's place, for all who accept its tier and window."""
    for tier in range(seat.tier, TIERS):
        there[seat.place, 2 * tier] += gpus
        if seat.long:
            there[seat.place, 2 * tier + 1] += gpus


@njit(cache=True, nogil=True, forceinline=True)
def _set(free: Ints, tree: Ints, seat: int, gpus: int) -> None:
    free[seat] = gpus
    at = len(tree) // 2 + seat
    tree[at] = gpus
    at >>= 1
    while at:
        most = max(tree[2 * at], tree[2 * at + 1])
        if tree[at] == most:
            break
        tree[at] = most
        at >>= 1
