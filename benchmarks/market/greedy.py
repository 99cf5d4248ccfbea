"""Three simpler ways to match, on the same books and by the same rules of what is legal.

They go through the jobs once; each gang that is placed stays. In none of them does anybody trade at
a loss: a node is out of the question for a job to which it is not worth its ask.

- first-come at posted asks: by waiting time; each takes what leaves it most at the sellers' asks;
- price priority: by the highest limit; each takes the same way;
- price-blind FIFO: by waiting time; each takes the fullest node that holds it, else the fullest
  place on one site, else several sites.

A job takes its most GPUs if it can have them, else its least. Several sites are taken greedily:
those with the highest gain first, each with as much as it has.
"""

import time
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.book import Book

FIRST_COME, PRICE_PRIORITY, PRICE_BLIND = "first-come at asks", "price priority", "price-blind FIFO"
RULES: Final = (FIRST_COME, PRICE_PRIORITY, PRICE_BLIND)
_NOT = -1e300


@dataclass(frozen=True, eq=False)
class Placed:
    """Rows of (job, node, GPUs), and what a GPU of each row gains an hour: welfare in USD per h."""

    job: np.ndarray
    node: np.ndarray
    gpus: np.ndarray
    gain: np.ndarray
    ask: np.ndarray

    @property
    def welfare(self) -> float:
        return float((self.gpus * self.gain).sum())


class _Shelf(NamedTuple):
    """Nodes by place (class and site), cheapest first: `nodes[first[p]:first[p + 1]]`."""

    first: np.ndarray
    nodes: np.ndarray
    place_class: np.ndarray
    place_site: np.ndarray


class _Terms(NamedTuple):
    """One job's terms, as the loops need them."""

    limit: np.ndarray  # [C]
    kappa: float
    lost: float
    regions: np.uint64
    trust: int
    tier: int
    long: int
    level: int
    sync_mb: float
    sync_s: float
    site_least: int
    sites_most: int


class _World(NamedTuple):
    node_class: np.ndarray
    node_site: np.ndarray
    node_ask: np.ndarray
    node_tier: np.ndarray
    node_long: np.ndarray
    free: np.ndarray
    nvlink: np.ndarray
    region: np.ndarray
    trust: np.ndarray
    net: np.ndarray
    uplink: np.ndarray
    failures: np.ndarray
    in_node: float
    in_site: np.ndarray


def place(book: Book, rule: str) -> Placed:
    """Matches a book by one of RULES."""
    if rule == PRICE_PRIORITY:
        order = np.lexsort((book.job_id, -book.job_limit.max(axis=1)))
    else:
        order = np.lexsort((book.job_id, -book.job_age_h))
    world, jobs = _world(book), _terms(book)
    most = int(world.free.sum())
    rows = np.empty((most, 3), np.int64)
    gains = np.empty(most)
    blind = rule == PRICE_BLIND
    count = _place_all(order, _sizes(book), jobs, world, _shelf(book), blind, rows, gains)
    job, node, gpus = rows[:count].T
    return Placed(job, node, gpus, gains[:count], book.node_ask[node])


def possible(book: Book) -> np.ndarray:
    """[J] whether a job would be placed if it had the market for itself."""
    world, jobs = _world(book), _terms(book)
    return _possible_all(_sizes(book), jobs, world, _shelf(book))


def timed(book: Book, rule: str) -> tuple[Placed, float]:
    """The same, and the wall seconds it took."""
    began = time.perf_counter()
    placed = place(book, rule)
    return placed, time.perf_counter() - began


def _world(book: Book) -> _World:
    params = book.params
    return _World(
        book.node_class, book.node_site, book.node_ask, book.node_tier, book.node_long,
        book.node_gpus.astype(np.int64), book.class_nvlink, book.site_region.astype(np.uint64),
        book.site_trust, book.site_net, book.site_up_mbps.astype(float),
        np.array(params.failures_per_gpu_hour), params.penalty_node_pcie,
        np.array(params.penalty_site),
    )  # fmt: skip


def _terms(book: Book) -> tuple[np.ndarray, ...]:
    """Of all jobs, in the order of _Terms."""
    return (
        book.job_limit, book.job_kappa.astype(float), book.job_hours_lost.astype(float),
        book.job_regions, book.job_trust, book.job_tier, book.job_long, book.job_level,
        book.job_sync_mb.astype(float), book.job_sync_s.astype(float), book.job_site_gpus_min,
        book.job_sites_max,
    )  # fmt: skip


def _sizes(book: Book) -> np.ndarray:
    return np.stack([book.job_gpus_max, book.job_gpus_min], axis=1).astype(np.int64)


def _shelf(book: Book) -> _Shelf:
    key = book.node_site.astype(np.int64) * len(book.class_nvlink) + book.node_class
    order = np.lexsort((book.node_ask, key))
    each, first = np.unique(key[order], return_index=True)
    classes = len(book.class_nvlink)
    return _Shelf(np.append(first, len(order)), order, each % classes, each // classes)


@njit(cache=True)
def _place_all(order, sizes, jobs, world, shelf, blind, rows, gains):
    count = 0
    taken = np.empty((len(world.free), 2), np.int64)
    gained = np.empty(len(world.free))
    for job in order:
        terms = _of(jobs, job)
        for which in range(2):
            size = sizes[job, which]
            if which == 1 and size == sizes[job, 0]:
                break
            found = _best(terms, size, world, shelf, blind, taken, gained)
            for at in range(found):
                node, gpus = taken[at]
                world.free[node] -= gpus
                rows[count] = job, node, gpus
                gains[count] = gained[at]
                count += 1
            if found:
                break
    return count


@njit(cache=True)
def _possible_all(sizes, jobs, world, shelf):
    found = np.zeros(len(sizes), np.bool_)
    taken = np.empty((len(world.free), 2), np.int64)
    gained = np.empty(len(world.free))
    for job in range(len(sizes)):
        terms = _of(jobs, job)
        for which in range(2):
            if _best(terms, sizes[job, which], world, shelf, False, taken, gained):
                found[job] = True
                break
    return found


@njit(cache=True)
def _of(jobs, job):
    return _Terms(
        jobs[0][job], jobs[1][job], jobs[2][job], jobs[3][job], jobs[4][job], jobs[5][job],
        jobs[6][job], jobs[7][job], jobs[8][job], jobs[9][job], jobs[10][job], jobs[11][job],
    )  # fmt: skip


@njit(cache=True)
def _best(terms, size, world, shelf, blind, taken, gained):
    """How many rows the best gang has, which then stand in `taken` and `gained`."""
    node, surplus = _best_node(terms, size, world, blind)
    if node >= 0 and (blind or size == 1 or terms.level == 0):
        return _take_node(terms, size, world, node, taken, gained)
    place = -1
    if size > 1 and terms.level >= 1:
        place, on_site = _best_place(terms, size, world, shelf, blind)
        if place >= 0 and blind:
            return _fill(terms, size, world, shelf, place, size, 1, taken, gained, 0)
        if place >= 0 and on_site > surplus:
            surplus = on_site
        else:
            place = -1
    if size > 1 and terms.level >= 2 and terms.sites_most > 1:
        over, found = _over_sites(terms, size, world, shelf, taken, gained)
        if found and (blind or over > surplus):
            return found
    if place >= 0:
        return _fill(terms, size, world, shelf, place, size, 1, taken, gained, 0)
    return _take_node(terms, size, world, node, taken, gained) if node >= 0 else 0


@njit(cache=True)
def _admits(terms, world, node):
    site = world.node_site[node]
    return (
        world.free[node] > 0
        and terms.limit[world.node_class[node]] > 0
        and (terms.regions >> world.region[site]) & np.uint64(1) == np.uint64(1)
        and world.trust[site] <= terms.trust
        and world.node_tier[node] <= terms.tier
        and world.node_long[node] >= terms.long
    )


@njit(cache=True)
def _gain(terms, size, world, node, level):
    """Of a GPU: limit · η − risk − ask, USD per hour."""
    site, gpu_class = world.node_site[node], world.node_class[node]
    limit, keeps = terms.limit[gpu_class], 1.0
    if level == 0:
        if size > 1 and world.nvlink[gpu_class] == 0:
            keeps = 1 - world.in_node * terms.kappa
    elif level == 1:
        keeps = 1 - world.in_site[world.net[site]] * terms.kappa
    else:
        pace = world.uplink[site] * terms.sync_s
        keeps = pace / (pace + 16 * terms.sync_mb) if pace > 0 else 0.0
    risk = world.failures[world.node_tier[node]] * size * terms.lost * limit
    return limit * keeps - risk - world.node_ask[node]


@njit(cache=True)
def _best_node(terms, size, world, blind):
    best, score, surplus = -1, _NOT, 0.0
    for node in range(len(world.free)):
        if world.free[node] < size or not _admits(terms, world, node):
            continue
        gain = _gain(terms, size, world, node, 0)
        here = -float(world.free[node]) if blind else gain
        if gain > 0 and here > score:
            best, score, surplus = node, here, size * gain
    return best, surplus


@njit(cache=True)
def _take_node(terms, size, world, node, taken, gained):
    taken[0] = node, size
    gained[0] = _gain(terms, size, world, node, 0)
    return 1


@njit(cache=True)
def _has(terms, size, world, shelf, place, level):
    """GPUs of a place that are worth their ask, and what the cheapest `size` of them gain."""
    gpus, total = 0, 0.0
    for at in range(shelf.first[place], shelf.first[place + 1]):
        node = shelf.nodes[at]
        if _admits(terms, world, node):
            gain = _gain(terms, size, world, node, level)
            if gain > 0:
                total += gain * max(min(world.free[node], size - gpus), 0)
                gpus += world.free[node]
    return gpus, total


@njit(cache=True)
def _best_place(terms, size, world, shelf, blind):
    best, score, surplus = -1, _NOT, 0.0
    for place in range(len(shelf.place_class)):
        many = shelf.first[place + 1] - shelf.first[place] > 1
        if not many or terms.limit[shelf.place_class[place]] <= 0:
            continue
        gpus, total = _has(terms, size, world, shelf, place, 1)
        here = -float(gpus) if blind else total
        if gpus >= size and here > score and _spans(terms, size, world, shelf, place):
            best, score, surplus = place, here, total
    return best, surplus


@njit(cache=True)
def _spans(terms, size, world, shelf, place):
    """Whether the first nodes that would be taken are several: one node has rules of its own."""
    for at in range(shelf.first[place], shelf.first[place + 1]):
        node = shelf.nodes[at]
        if _admits(terms, world, node) and _gain(terms, size, world, node, 1) > 0:
            return world.free[node] < size
    return False


@njit(cache=True)
def _fill(terms, size, world, shelf, place, wanted, level, taken, gained, found):
    """Takes `wanted` GPUs of a place; how many rows there are then."""
    for at in range(shelf.first[place], shelf.first[place + 1]):
        node = shelf.nodes[at]
        if wanted == 0:
            break
        if _admits(terms, world, node):
            gain = _gain(terms, size, world, node, level)
            if gain > 0:
                gpus = min(world.free[node], wanted)
                taken[found] = node, gpus
                gained[found] = gain
                found += 1
                wanted -= gpus
    return found


@njit(cache=True)
def _over_sites(terms, size, world, shelf, taken, gained):
    """The most that a class gives over several sites, and its rows."""
    best, best_class = 0.0, -1
    for gpu_class in range(len(terms.limit)):
        if terms.limit[gpu_class] > 0:
            total, _ = _spread(terms, size, world, shelf, gpu_class, taken, gained)
            if total > best:
                best, best_class = total, gpu_class
    if best_class < 0:
        return 0.0, 0
    return _spread(terms, size, world, shelf, best_class, taken, gained)


@njit(cache=True)
def _spread(terms, size, world, shelf, gpu_class, taken, gained):
    places = np.flatnonzero(shelf.place_class == gpu_class)
    gpus, gains = np.zeros(len(places), np.int64), np.zeros(len(places))
    for at in range(len(places)):
        gpus[at], gains[at] = _has(terms, size, world, shelf, places[at], 2)
    left, found, sites = size, 0, 0
    for at in np.argsort(-gains):
        share = min(gpus[at], left, size - 1)
        if 0 < left - share < terms.site_least:
            share -= terms.site_least - (left - share)
        if share < terms.site_least or sites == terms.sites_most:
            continue
        found = _fill(terms, size, world, shelf, places[at], share, 2, taken, gained, found)
        left, sites = left - share, sites + 1
        if left == 0:
            break
    total = 0.0
    for at in range(found):
        total += gained[at] * taken[at, 1]
    return (total, found) if left == 0 and sites > 1 else (0.0, 0)
