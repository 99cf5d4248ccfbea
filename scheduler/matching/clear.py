"""Clears one book for as long as there is time: near the best that any matches could be.

Three steps, each of which tells the next what it needs:

1. Prices climb until about as much is offered as wanted (`ascent`). They bound the welfare of any
   matches.
2. Jobs choose by these prices, in larger books move where cheap nodes were left idle, and then, for as
   long as there is time, some of them are put out and choose anew (`improving`, `ruining`), on two threads
   (`searching`).
3. Prices are set that support the matches (`settling`): those of the ascent raised to asks or, in
   small books, the lowest where they prove as much (`pricing`). The bound is what those of the ascent
   prove, or in small books the ones that are paid.

Prices of a large book go on from those of the round before.

Ties fall by a hash of the book's seed and the row's id: the order of the rows means nothing.
"""

import math
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numba import njit

from scheduler.matching import improving, lowering, pricing, searching, settling
from scheduler.matching.arrays import Array, Bools, Floats, Ints
from scheduler.matching.ascent import MANY, STEPS, Ascent
from scheduler.matching.book import Book
from scheduler.matching.bound import bound
from scheduler.matching.cells import SLOTS, Cells, cells
from scheduler.matching.desks import desk
from scheduler.matching.hoping import hopes
from scheduler.matching.matches import Matches
from scheduler.matching.ordering import in_our_order, mixed, sorted_by
from scheduler.matching.ruining import Market
from scheduler.matching.supply import Supply, priced, ranked_by_prices, stock, supply
from scheduler.matching.tables import Tables, tables
from scheduler.matching.values import Parts, of_rows

_FEW, _AGAIN = 30, 5
"""Steps that prices take where there are not many jobs, and from last round's."""
_SETTLED: Final = 0.003
"""Last round's prices are still right if the first of these lowers the bound by no more than this
share: where 2 % of a book changed by a thousandth at most, of a book of those who are left by 0.9 % or
more."""
_KNOWN: Final = 0.5
"""The share of nodes whose prices must be known to go on from them."""
_GUIDE, _LOOK = 0.97, 64
"""In larger books; so many places of each rank are looked at, for most of the first cost alike."""
_SMALL: Final = 400


@dataclass(frozen=True, eq=False)
class _Ours:
    """A book, and the same in an order of our own: the numbers there of its jobs and nodes."""

    book: Book
    jobs: Ints
    nodes: Ints
    ordered: Book
    kinds: Cells
    of: Tables


class _Proof(NamedTuple):
    """Prices [K, 4], and the bound on the welfare that follows from them."""

    price: Floats
    bound: float


def clear(book: Book, more: Callable[[], bool] | None = None) -> Matches:
    """Matches for a book. `more` is asked whether there is time to make them better; without it
    the same book gives the same matches, bit for bit."""
    return follow(book, None, more)[0]


def follow(
    book: Book, last: Floats | None, more: Callable[[], bool] | None = None
) -> tuple[Matches, Floats]:
    """`clear`, and [N, 4] the prices that balance each node's cell, for the next round to go on from:
    raised to the asks that were let they would rise from round to round. `last` [N, 4] are those of
    the round before (0: none), from which large books start. The same two give the same matches."""
    jobs, nodes, ordered = _in_our_order(book)
    with ThreadPoolExecutor(1) as beside:
        sold = beside.submit(supply, ordered)
        kinds = cells(ordered)
        ours = _Ours(book, jobs, nodes, ordered, kinds, tables(ordered, kinds))
        prices = None if last is None or book.jobs <= _SMALL else _going_on(ours, last[nodes])
        if prices is None:
            steps = STEPS if book.jobs >= MANY else _FEW
            prices = Ascent(ours.of, steps=steps)
            if book.jobs > _SMALL or not _trades(book):
                prices.climb(steps)
        if book.jobs > _SMALL:
            market, proof = _proven(ours, prices, sold.result(), more)
        else:
            # What it is still busy with when the time is over need not be waited for.
            market = _searched(ours, prices, sold.result(), beside, more)
            proof = _Proof(prices.best, math.inf)
        return _finished(ours, market, proof), _by_node(ours, prices.best)


def _going_on(ours: _Ours, last: Floats) -> Ascent | None:
    """From last round's prices [N, 4]; None if the book is quite another."""
    start = _of_cells(ours.kinds, last)
    if start is None:
        return None
    prices = Ascent(ours.of, start)
    prices.climb(1)
    before = prices.bound
    prices.climb(1)
    if prices.bound < before * (1 - _SETTLED):
        return None
    prices.climb(_AGAIN - 2)
    return prices


def _of_cells(kinds: Cells, price: Floats) -> Floats | None:
    """[K, 4] the price of each cell by those of its nodes [N, 4]; of one that has none, the mean of
    its class. None if there are hardly any."""
    found = np.zeros((len(kinds), price.shape[1]))
    _find_highest(kinds.of_node, price, found)
    known: Bools = np.all(found > 0, axis=1)
    if not len(price) or known[kinds.of_node].mean() < _KNOWN:
        return None
    for gpu_class in np.unique(kinds.gpu_class[~known]):
        alike = kinds.gpu_class == gpu_class
        if known[alike].any():
            found[alike & ~known] = found[alike & known].mean(axis=0)
    return np.maximum.accumulate(found, axis=1)


@njit(cache=True, nogil=True)
def _find_highest(cell: Ints, price: Floats, found: Floats) -> None:
    """Raises `found` [K, 4] to the prices of each cell's nodes [N, 4]."""
    for node in range(len(cell)):
        for slot in range(price.shape[1]):
            found[cell[node], slot] = max(found[cell[node], slot], price[node, slot])


def _in_our_order(book: Book) -> tuple[Ints, Ints, Book]:
    """(jobs, nodes, the book so ordered) by asks, ids and seed alone: where things are tried in turn, it
    is fair."""
    jobs = sorted_by(mixed(book.job_id, book.params.seed))
    nodes = sorted_by(book.node_ask, book.node_gpus, mixed(book.node_id, book.params.seed))
    ordered, _ = in_our_order(book, jobs, nodes)
    return jobs, nodes, ordered


def _proven(
    ours: _Ours, prices: Ascent, sold: Supply, more: Callable[[], bool] | None
) -> tuple[Market, _Proof]:
    """Who runs where in a larger book, and what the prices prove: known before, that is reckoned beside
    the choosing, which has use for one thread only."""
    with ThreadPoolExecutor(1) as beside:
        bounded = beside.submit(bound, ours.of, prices.best)
        market = _matched(ours, prices, sold, more)
        return market, _Proof(prices.best, bounded.result())


def _finished(ours: _Ours, market: Market, proof: _Proof) -> Matches:
    """With the prices that are paid, and what proves most."""
    book, kinds, of = ours.ordered, ours.kinds, ours.of
    let = _let(book, of, market)
    if book.jobs <= _SMALL:
        lowest = pricing.ladders(book, kinds, let)
        ladder, proven, before = lowering.lowered(of, let, proof.price, lowest)
        proof = _Proof(ladder, proven) if proven < before else _Proof(proof.price, before)
    else:
        ladder = settling.ladders(of, let, proof.price)
    return _matches(ours, let, market.gangs["level"], ladder, proof)


def _by_node(ours: _Ours, price: Floats) -> Floats:
    """[N, 4] of each node's cell, in the book's own order."""
    cell = np.empty(len(ours.nodes), np.int64)
    cell[ours.nodes] = ours.kinds.of_node
    return price.take(cell, axis=0)


def _matches(ours: _Ours, let: Array, reached: Ints, ladder: Floats, proof: _Proof) -> Matches:
    """In the book's own order."""
    book, jobs, nodes, of = ours.book, ours.jobs, ours.nodes, ours.of
    gpus = np.array(SLOTS)[let["slot"]]
    level, gpu_class = np.full((2, book.jobs), -1)
    level[jobs] = reached
    gpu_class[jobs[let["job"]]] = book.node_class[nodes[let["node"]]]
    job, node = jobs[let["job"]], nodes[let["node"]]
    order = sorted_by(job, node, -gpus)
    paid = settling.payments(of, let, ladder)
    gain = gpus * (let["worth"] - let["risk"] - of.nodes["ask"][let["node"]])
    return Matches(
        job=job[order].astype("<i4"),
        node=node[order].astype("<i4"),
        gpus=gpus[order].astype("|i1"),
        price=paid[order],
        level=level.astype("|i1"),
        gpu_class=gpu_class.astype("<i2"),
        cell_price=_by_node(ours, ladder),
        welfare=math.fsum(gain),
        bound=proof.bound,
        make_whole=settling.made_whole(of, let, paid),
        seconds=0.0,
        balance=_by_node(ours, proof.price),
    )


def _matched(ours: _Ours, prices: Ascent, sold: Supply, more: Callable[[], bool] | None) -> Market:
    """Who runs where in a larger book."""
    priced(sold.seats, sold.shelf, prices.best[ours.kinds.of_node])
    market = _empty(ours, sold)
    if not _trades(ours.book):
        return market
    # Who would lose most by coming late comes first, however large it is.
    order = searching.from_most(market.gangs["weight"] * prices.gains)
    return searching.larger(_filled(market, order), more)


def _searched(
    ours: _Ours, prices: Ascent, sold: Supply, thread: Executor, more: Callable[[], bool] | None
) -> Market:
    """Who runs where in a small book: its prices are on their way by the time that all else is ready."""
    if not _trades(ours.book):
        return _empty(ours, sold)

    def climb() -> tuple[Floats, Floats]:
        prices.climb(_FEW)
        return prices.best[ours.kinds.of_node], prices.gains

    climbing = thread.submit(climb)
    return searching.small(_empty(ours, sold), thread, climbing, more)


def _empty(ours: _Ours, sold: Supply) -> Market:
    """Nothing is let yet."""
    book, of = ours.ordered, ours.of
    gangs, parts = improving.gangs(of, book)
    room = desk(int(of.jobs["most"].max(initial=1)), sold, book.params.seed)
    nowhere = hopes(of, sold, np.arange(0))
    return Market(of, nowhere, sold, stock(sold), room, gangs, parts)


def _trades(book: Book) -> bool:
    return bool(book.jobs and book.nodes)


def _filled(market: Market, order: Ints) -> Market:
    """By prices first, for which a look at few kinds is enough; who gets nothing, by asks; then who
    could do better moves."""
    guided = market._replace(sold=ranked_by_prices(market.sold, _GUIDE))
    improving.fill(searching.looking(guided, order, _GUIDE), order, _GUIDE, _LOOK)
    rest = order[market.gangs["parts"][order] == 0]
    improving.fill(searching.looking(market, rest, 0.0), rest, 0.0, improving.LOOK)
    searching.moved(market, order)
    return market


def _let(book: Book, of: Tables, market: Market) -> Array:
    """The slots that were let: each node's share of a gang, cut into the fewest."""
    gangs, seats = market.gangs, market.sold.seats
    count = gangs["parts"].astype(np.int64)
    job = np.repeat(np.arange(book.jobs), count)
    at = np.repeat(gangs["first"] - (np.cumsum(count) - count), count) + np.arange(count.sum())
    part = market.parts[at]
    node = seats["node"][part["seat"]]
    worth, risk = of_rows(book, _parts(book, gangs, job, node))
    rows = []
    for slot, size in enumerate(SLOTS):
        times = part["gpus"] // 8 if size == SLOTS[-1] else part["gpus"] // size % 2
        one = np.repeat(np.arange(len(part)), times)
        let = np.zeros(len(one), settling.LET)
        let["job"], let["node"], let["slot"] = job[one], node[one], slot
        let["cell"] = of.nodes["cell"][node[one]]
        let["worth"], let["risk"] = worth[one], risk[one]
        rows.append(let)
    return np.concatenate(rows)


def _parts(book: Book, gangs: Array, job: Ints, node: Ints) -> Parts:
    """Rows of jobs and nodes, as their worth is told."""
    limit = book.job_limit[job, book.node_class[node]]
    columns = (book.job_kappa, book.job_hours_lost, book.job_sync_mb, book.job_sync_s)
    return Parts(
        node, gangs["size"][job], gangs["level"][job], limit,
        *(column[job].astype(float) for column in columns),
    )  # fmt: skip
