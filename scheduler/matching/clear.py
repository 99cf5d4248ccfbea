"""Clears one book for as long as there is time: near the best that any matches could be.

Three steps, each of which tells the next what it needs:

1. Prices climb until about as much is offered as wanted (`ascent`). They bound the welfare of any
   matches.
2. Jobs choose by these prices, and then, for as long as there is time, some of them are put out and
   choose anew (`improving`).
3. Prices are set that support the matches (`settling`), and what they prove is reckoned: those of
   the ascent or, in small books, the lowest where they prove as much (`pricing`).

Ties fall by a hash of the book's seed and the row's id: the order of the rows means nothing.
"""

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from scheduler.matching import book as books
from scheduler.matching import improving, pricing, settling
from scheduler.matching.arrays import Array, Bools, Floats, Ints
from scheduler.matching.ascent import Ascent
from scheduler.matching.book import Book
from scheduler.matching.bound import bound
from scheduler.matching.cells import SLOTS, Cells, cells
from scheduler.matching.choosing import desk
from scheduler.matching.hoping import hopes
from scheduler.matching.improving import Market
from scheduler.matching.matches import Matches
from scheduler.matching.ordering import mixed, with_places_as_they_come
from scheduler.matching.placing import Gang, Stand
from scheduler.matching.supply import stock, supply
from scheduler.matching.tables import Tables, tables
from scheduler.matching.values import Parts, of_rows

_SWEEPS, _AGAIN = 50, 16
"""Steps that prices take, and take from last round's."""
_KNOWN: Final = 0.5
"""The share of nodes whose prices must be known to go on from them."""
_GUIDES: Final = (0.98, 1.0, 0.9, 0.0)
"""Whoever keeps to the prices exactly is left with nothing where they are a hair too high."""
_SMALL: Final = 400
_ROUNDS: Final = 256
"""Of ruin and recreate, between two looks at the time."""
_LEAST_ROUNDS: Final = 2048


def clear(
    book: Book, more: Callable[[], bool] | None = None, last: Floats | None = None
) -> Matches:
    """Matches for a book. `more` is asked whether there is time to make them better; without it
    the same book gives the same matches, bit for bit. `last` [N, 4] are the prices that each node's
    cell had in the round before (0: none); large books start from them."""
    # 1. An order of our own, from ids and seed alone: where we try things in turn, it is fair.
    jobs = np.argsort(mixed(book.job_id, book.params.seed))
    nodes = np.lexsort((mixed(book.node_id, book.params.seed), book.node_ask))
    ordered, _ = with_places_as_they_come(books.reordered(book, jobs, nodes))
    kinds = cells(ordered)
    of = tables(ordered, kinds)
    # 2. Prices, and who runs where.
    start = None if last is None or book.jobs <= _SMALL else _of_cells(kinds, last[nodes])
    climbing = Ascent(of, start)
    climbing.climb(_SWEEPS if start is None else _AGAIN)
    market = _matched(ordered, kinds, of, climbing, more)
    # 3. Prices within that room, and what they prove.
    let = _let(ordered, of, market)
    if book.jobs <= _SMALL:
        lowest = pricing.ladders(ordered, kinds, *_gangs(ordered, kinds, let, market))
        ladder = settling.lowered(of, let, climbing.best, lowest)
    else:
        ladder = settling.ladders(of, let, climbing.best)
    return _matches(book, (jobs, nodes), of, (let, market.gangs["level"]), ladder)


def _matches(
    book: Book, numbers: tuple[Ints, Ints], of: Tables, found: tuple[Array, Ints], ladder: Floats
) -> Matches:
    """In the book's own order: `numbers` are those of our jobs and nodes in it."""
    (jobs, nodes), (let, reached) = numbers, found
    gpus = np.array(SLOTS)[let["slot"]]
    level, gpu_class = np.full((2, book.jobs), -1)
    level[jobs] = reached
    gpu_class[jobs[let["job"]]] = book.node_class[nodes[let["node"]]]
    cell_price = np.empty((book.nodes, len(SLOTS)))
    cell_price[nodes] = ladder[of.nodes["cell"]]
    job, node = jobs[let["job"]], nodes[let["node"]]
    order = np.lexsort((-gpus, node, job))
    paid = settling.payments(of, let, ladder)
    gain = gpus * (let["worth"] - let["risk"] - of.nodes["ask"][let["node"]])
    return Matches(
        job=job[order].astype("<i4"),
        node=node[order].astype("<i4"),
        gpus=gpus[order].astype("|i1"),
        price=paid[order],
        level=level.astype("|i1"),
        gpu_class=gpu_class.astype("<i2"),
        cell_price=cell_price,
        welfare=math.fsum(gain),
        bound=bound(of, ladder),
        make_whole=settling.made_whole(of, let, paid),
        seconds=0.0,
    )


def _of_cells(kinds: Cells, price: Floats) -> Floats | None:
    """[K, 4] the price of each cell by those of its nodes [N, 4]; of one that has none, the mean of
    its class. None if there are hardly any."""
    found = np.zeros((len(kinds), price.shape[1]))
    np.maximum.at(found, kinds.of_node, price)
    known: Bools = np.all(found > 0, axis=1)
    if known[kinds.of_node].mean() < _KNOWN:
        return None
    for gpu_class in np.unique(kinds.gpu_class[~known]):
        alike = kinds.gpu_class == gpu_class
        if known[alike].any():
            found[alike & ~known] = found[alike & known].mean(axis=0)
    return np.maximum.accumulate(found, axis=1)


def _matched(
    book: Book, kinds: Cells, of: Tables, prices: Ascent, more: Callable[[], bool] | None
) -> Market:
    sold = supply(book, prices.best[kinds.of_node], np.arange(book.nodes))
    hoped, (gangs, parts) = hopes(of, sold.seats, sold.kinds), improving.gangs(of, book)
    room = desk(int(of.jobs["most"].max(initial=1)), sold, book.params.seed)
    market = Market(of, hoped, sold, stock(sold), room, gangs, parts)
    if not book.jobs or not book.nodes:
        return market
    improving.hope(market)
    # Who would lose most by coming late, and has most to fit in, comes first.
    order = np.argsort(-gangs["weight"] * prices.gains * of.jobs["least"], kind="stable")
    starts = [_start(market, order, guide) for guide in _guides(book)]
    market = max(starts, key=_worth)  # of equals the first
    spare, done = improving.undo(market), 0
    while more() if more else done < _LEAST_ROUNDS:
        improving.improve(market, _ROUNDS, spare)
        done += _ROUNDS
    return market


def _guides(book: Book) -> tuple[float, ...]:
    """How much prices count in each start: small books get stuck where they begin, and begin often."""
    return _GUIDES if book.jobs <= _SMALL else _GUIDES[:1]


def _start(empty: Market, order: Ints, guide: float) -> Market:
    market = empty._replace(
        left=stock(empty.sold),
        room=empty.room._replace(random=empty.room.random.copy()),
        gangs=empty.gangs.copy(),
        parts=empty.parts.copy(),
    )
    improving.fill(market, order, guide)
    improving.fill(market, order, 0.0)
    if len(order) <= _SMALL:
        improving.improve(market, _ROUNDS, improving.undo(market))
    return market


def _worth(market: Market) -> float:
    return math.fsum(market.gangs["weight"] * market.gangs["surplus"])


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


def _gangs(book: Book, kinds: Cells, let: Array, market: Market) -> tuple[Stand, dict[int, Gang]]:
    """What was let as whole gangs, and the room that they leave for prices."""
    stand = Stand.opening(book, kinds)
    found = {}
    for job in np.unique(let["job"]).tolist():
        rows = let[let["job"] == job]
        nodes, first, of_row = np.unique(rows["node"], return_index=True, return_inverse=True)
        gpus = np.bincount(of_row.reshape(-1), np.array(SLOTS)[rows["slot"]]).astype(np.int64)
        value = (rows["worth"] - rows["risk"])[first]
        surplus = float((gpus * (value - book.node_ask[nodes])).sum())
        found[job] = Gang(nodes, gpus, value, int(market.gangs["level"][job]), surplus)
        pricing.narrow(kinds, stand, found[job])
    return stand, found


def _parts(book: Book, gangs: Array, job: Ints, node: Ints) -> Parts:
    """Rows of jobs and nodes, as their worth is told."""
    limit = book.job_limit[job, book.node_class[node]]
    columns = (book.job_kappa, book.job_hours_lost, book.job_sync_mb, book.job_sync_s)
    return Parts(
        node, gangs["size"][job], gangs["level"][job], limit,
        *(column[job].astype(float) for column in columns),
    )  # fmt: skip
