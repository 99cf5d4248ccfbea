"""What a GPU of each cell is worth to a job: limit × η − risk, USD per GPU-hour.

η is the share of its speed that a gang keeps (1 for a single GPU), by the loosest link inside it:

- in one node 1 − κ · (0 with NVLink, else the PCIe penalty);
- on one site 1 − κ · the penalty of the site's network;
- over several sites, for each row by its own site's uplink, 1 / (1 + 16·MB / (Mbit/s · s)):
  a synchronisation moves its megabytes out and in, 8 bits a byte, and sites go at their own pace.

Risk is what failures cost: rate(tier) × GPUs in the gang × hours lost × limit.

`terms` says it of one job and every cell, before anything is chosen; `of_rows` of gangs and the nodes
that they have, be it by a round or because they run there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.matching.arrays import Array, Bools, Floats, Ints
from scheduler.matching.book import Book, Order
from scheduler.matching.cells import POOL, Cells


@dataclass(frozen=True, eq=False)
class Terms:
    """One job against every cell [K] and site [S]; or several jobs, a row for each."""

    limit: Floats  # [K]; 0 where the job doesn't want the cell
    risk: Floats  # [K]; per GPU, times the gang's size
    in_node: Floats  # [K]; η
    in_site: Floats  # [K]; η, 0 in pools
    over_sites: Floats  # [S]; η


def eligible(book: Book, kinds: Cells, job: int | Ints) -> Bools:
    """[K] whether the job accepts the cell: limit, region, trust, tier, window."""
    regions = _each(book.job_regions, job) >> kinds.region.astype(np.uint64) & np.uint64(1)
    accepted: Bools = (
        (book.job_limit[job][..., kinds.gpu_class] > 0)
        & (regions == 1)
        & (kinds.trust <= _each(book.job_trust, job))
        & (kinds.tier <= _each(book.job_tier, job))
        & (kinds.long >= _each(book.job_long, job).astype(bool))
    )
    return accepted


def terms(book: Book, kinds: Cells, job: int | Ints) -> Terms:
    """What one job makes of the book, or several."""
    kappa = _each(book.job_kappa, job).astype(float)
    limit = book.job_limit[job][..., kinds.gpu_class] * eligible(book, kinds, job)
    return Terms(
        limit=limit,
        risk=kinds.failures * _each(book.job_hours_lost, job).astype(float) * limit,
        in_node=1 - kappa * kinds.node_penalty,
        in_site=np.where(kinds.site == POOL, 0.0, 1 - kappa * kinds.site_penalty),
        over_sites=_over_sites(
            book.site_up_mbps,
            _each(book.job_sync_mb, job).astype(float),
            _each(book.job_sync_s, job).astype(float),
        ),
    )


def _each(column: Array, job: int | Ints) -> Array:
    """Of a job, or of each of several, to be set against all cells or sites."""
    return np.asarray(column[job])[..., None]


@dataclass(frozen=True, eq=False)
class Parts:
    """Gangs' parts, a row for each node of each [R], with what of their orders decides."""

    node: Ints  # index into the book
    size: Ints  # GPUs of the whole gang
    level: Ints  # that it reaches: 0 one node, 1 one site, 2 several
    limit: Floats  # USD per GPU-hour of its class
    kappa: Floats
    hours_lost: Floats
    sync_mb: Floats
    sync_s: Floats


def of_rows(book: Book, parts: Parts) -> tuple[Floats, Floats]:
    """[R] (limit · η, risk) of each part, USD per GPU-hour. The book's jobs are not asked."""
    params, site, gpu_class = book.params, book.node_site[parts.node], book.node_class[parts.node]
    pcie = np.where(book.class_nvlink[gpu_class] == 1, 0.0, params.penalty_node_pcie)
    in_node = np.where(parts.size > 1, 1 - parts.kappa * pcie, 1.0)
    in_site = 1 - parts.kappa * np.array(params.penalty_site)[book.site_net[site]]
    over = _over_sites(book.site_up_mbps[site], parts.sync_mb, parts.sync_s)
    keeps = np.choose(parts.level, [in_node, in_site, over])
    rate = np.array(params.failures_per_gpu_hour)[book.node_tier[parts.node]]
    return parts.limit * keeps, rate * parts.size * parts.hours_lost * parts.limit


def of_gangs(
    book: Book, orders: Sequence[Order], gang: Ints, node: Ints, gpus: Ints
) -> tuple[Floats, Floats]:
    """[G] (Σ GPUs · (limit · η − risk − ask), Σ GPUs · limit · η), USD per hour, of gangs as they
    run: by their orders, each with one limit, on the class that it has; `gang`, `node`, `gpus` [R] say
    where."""
    count = len(orders)
    size = np.bincount(gang, gpus, count).astype(np.int64)
    nodes, sites = (_distinct(gang, of, count) for of in (node, book.node_site[node]))
    level = np.where(nodes == 1, 0, np.where(sites == 1, 1, 2))
    parts = Parts(
        node=node,
        size=size[gang],
        level=level[gang],
        limit=np.array([max(each.limits.values()) for each in orders])[gang],
        kappa=np.array([each.kappa for each in orders])[gang],
        hours_lost=np.array([each.hours_lost for each in orders])[gang],
        sync_mb=np.array([each.sync_mb for each in orders])[gang],
        sync_s=np.array([each.sync_s for each in orders])[gang],
    )
    value, risk = of_rows(book, parts)
    gains = gpus * (value - risk - book.node_ask[node])
    return _summed(gang, gains, count), _summed(gang, gpus * value, count)


def _summed(gang: Ints, amounts: Floats, count: int) -> Floats:
    """[G] each gang's."""
    found = np.zeros(count)
    np.add.at(found, gang, amounts)
    return found


def _distinct(gang: Ints, of: Ints, count: int) -> Ints:
    """[G] of how many different ones each gang has a row."""
    pairs = np.unique(np.stack([gang, of], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=count)


def _over_sites(uplink: Array, sync_mb: Floats, sync_s: Floats) -> Floats:
    """η behind these uplinks, Mbit/s; 0 for a job that never computes in between, or without one."""
    computing = uplink.astype(np.float64) * sync_s
    return np.divide(
        computing, computing + 16.0 * sync_mb, out=np.zeros(computing.shape), where=computing > 0
    )
