"""What one order would cost now: every place where it could run, and why it can't elsewhere.

A taken offer starts at once at max(ask, the last round's price of its cell), so nobody has to wait
for a round to know a price. A quote looks at what is free and at prices, never at others' bids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scheduler.matching.arrays import Floats
from scheduler.matching.book import NODE_GPUS, Book
from scheduler.matching.cells import SLOTS, Cells, Names, cells, labels, slots
from scheduler.matching.explain import Term
from scheduler.matching.placing import NODE, Gang, Search, Stand
from scheduler.matching.saying import LEVELS, unmet
from scheduler.matching.spreading import places
from scheduler.matching.values import terms


@dataclass(frozen=True)
class Candidate:
    """A place for one order. Prices are USD per GPU-hour, sums USD per hour."""

    nodes: tuple[int, ...]  # indexes into the book
    gpus: tuple[int, ...]  # on each of them
    prices: tuple[float, ...]  # on each of them: max(ask, the cell's last price)
    level: int
    gpu_class: int
    why: str = ""
    """Why it doesn't fit, as a sentence for its buyer; empty if it does."""
    surplus: float = 0.0
    """Σ GPUs · (limit · η − risk − price): what candidates are ranked by."""

    @property
    def fits(self) -> bool:
        return not self.why

    @property
    def hourly(self) -> float:
        """What it costs in all."""
        return sum(gpus * price for gpus, price in zip(self.gpus, self.prices, strict=True))


def quote(
    book: Book, order: int, last: Mapping[str, Sequence[float]], names: Names
) -> list[Candidate]:
    """Where the book's order number `order` could run: the best first, then what doesn't fit.

    `last` holds the last ladder of each cell by its label (`cells.labels`): four prices, for slots
    of 1, 2, 4 and 8 GPUs. A cell without one costs its asks. An elastic order is quoted for as
    many GPUs as fit. A node that is in no candidate that fits is one that doesn't, with the reason.
    """
    kinds = cells(book)
    stand = Stand.opening(book, kinds, _cost(book, kinds, last, names))
    term = terms(book, kinds, order)
    # A price up to limit · η is the buyer's to accept: risk decides the rank, not the fit.
    search = Search(book, kinds, stand, order, replace(term, risk=np.zeros_like(term.risk)))
    fitting = [_candidate(search, gang, term.risk) for gang in _gangs(search)]
    fitting.sort(key=lambda candidate: -candidate.surplus)
    used = {node for candidate in fitting for node in candidate.nodes}
    why = _cell_reasons(search, names)
    return fitting + [
        _misfit(search, node, why[kinds.of_node[node]] or _node_reason(search, node, bool(fitting)))
        for node in range(book.nodes)
        if node not in used
    ]


def _cost(book: Book, kinds: Cells, last: Mapping[str, Sequence[float]], names: Names) -> Floats:
    """[N, 17] price per GPU-hour of so many GPUs of a node: the mean over its slots."""
    none = (0.0,) * len(SLOTS)
    ladders = [last.get(label, none) for label in labels(kinds, names)]
    ladder = np.array(ladders, float).reshape(-1, len(SLOTS))[kinds.of_node]
    price = np.maximum(book.node_ask[:, None], ladder)
    cost = np.repeat(price[:, :1], NODE_GPUS + 1, axis=1)
    for gpus in range(1, NODE_GPUS + 1):
        cut = slots(gpus)
        mean = sum(size * price[:, SLOTS.index(size)] for size in cut) / gpus
        # A mean of equal floats may fall a hair below them; nobody is let below their ask.
        cost[:, gpus] = np.maximum(mean, book.node_ask)
    return cost


def _gangs(search: Search) -> list[Gang]:
    """One for each node and site that can do it alone, and the best over several sites."""
    gangs: dict[tuple[int, ...], Gang] = {}
    for target in reversed(search.targets):
        for gang in places(search, target, everything=True):
            gangs.setdefault(tuple(gang.nodes.tolist()), gang)
    return list(gangs.values())


def _candidate(search: Search, gang: Gang, risk: Floats) -> Candidate:
    size = int(gang.gpus.sum())
    lost = (gang.gpus * risk[search.kinds.of_node[gang.nodes]]).sum() * size
    return Candidate(
        nodes=tuple(gang.nodes.tolist()),
        gpus=tuple(gang.gpus.tolist()),
        prices=tuple(search.stand.cost[gang.nodes, gang.gpus].tolist()),
        level=gang.level,
        gpu_class=int(search.book.node_class[gang.nodes[0]]),
        surplus=gang.surplus - float(lost),
    )


def _misfit(search: Search, node: int, why: str) -> Candidate:
    gpus = min(int(search.book.node_gpus[node]), search.targets[-1])
    price = float(search.stand.cost[node, gpus])
    gpu_class = int(search.book.node_class[node])
    return Candidate((node,), (gpus,), (price,), NODE, gpu_class, why)


def _cell_reasons(search: Search, names: Names) -> list[str]:
    """[K] the first of the order's terms that the cell's nodes all fail; empty if none."""
    book, kinds, job = search.book, search.kinds, search.job
    regions, least_trust = int(book.job_regions[job]), int(book.job_trust[job])
    least_tier, long = int(book.job_tier[job]), bool(book.job_long[job])

    def reason(cell: int) -> str:
        gpu_class, trust, tier = (
            int(kind[cell]) for kind in (kinds.gpu_class, kinds.trust, kinds.tier)
        )
        called = names.classes[gpu_class]
        if book.job_limit[job, gpu_class] == 0:
            return unmet(Term.LIMIT, gpu_class=called)
        if not regions >> int(kinds.region[cell]) & 1:
            return unmet(Term.REGION, gpu_class=called)
        if trust > least_trust:
            return unmet(Term.TRUST, gpu_class=called, has=trust, wants=least_trust)
        if tier > least_tier:
            return unmet(Term.TIER, gpu_class=called, has=tier, wants=least_tier)
        if long and not kinds.long[cell]:
            return unmet(Term.WINDOW, gpu_class=called)
        return ""

    return [reason(cell) for cell in range(len(kinds))]


def _node_reason(search: Search, node: int, served: bool) -> str:
    """Why a node of an accepted cell is in no gang; `served` if other nodes are."""
    free, least = int(search.stand.free[node]), search.least
    if free == 0:
        return "all its GPUs are let"
    if free < least and search.loosest == NODE:
        return f"it has {free} GPUs free; you need {least} in one node"
    cell = search.kinds.of_node[node]
    limit = float(search.terms.limit[cell])
    speed = float(search.terms.in_node[cell]) if 1 < least <= free else 1.0
    price = float(search.stand.cost[node, min(free, least)])
    if price > limit:
        return f"it costs {price:.4g} per GPU-hour; your limit is {limit:.4g}"
    if price > limit * speed:
        return (
            f"it costs {price:.4g} per GPU-hour; {least} GPUs run at {speed:.0%} of their speed in"
            f" this node, where your limit of {limit:.4g} is worth {limit * speed:.4g}"
        )
    if served:
        return f"it has {free} GPUs free, and other nodes make a better gang of {least}"
    return (
        f"it has {free} GPUs free, and with the others that you accept {LEVELS[search.loosest]}"
        f" there are fewer than {least} worth their price"
    )
