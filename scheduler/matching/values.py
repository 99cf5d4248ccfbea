"""What a GPU of each cell is worth to a job: limit × η − risk, USD per GPU-hour.

η is the share of its speed that a gang keeps (1 for a single GPU), by the loosest link inside it:

- in one node 1 − κ · (0 with NVLink, else the PCIe penalty);
- on one site 1 − κ · the penalty of the site's network;
- over several sites, for each row by its own site's uplink, 1 / (1 + 16·MB / (Mbit/s · s)):
  a synchronisation moves its megabytes out and in, 8 bits a byte, and sites go at their own pace.

Risk is what failures cost: rate(tier) × GPUs in the gang × hours lost × limit.
"""

from dataclasses import dataclass

import numpy as np

from scheduler.matching.arrays import Bools, Floats, Ints
from scheduler.matching.book import Book
from scheduler.matching.cells import POOL, Cells


@dataclass(frozen=True, eq=False)
class Terms:
    """One job against every cell [K] and site [S]."""

    limit: Floats  # [K]; 0 where the job doesn't want the cell
    risk: Floats  # [K]; per GPU, times the gang's size
    in_node: Floats  # [K]; η
    in_site: Floats  # [K]; η, 0 in pools
    over_sites: Floats  # [S]; η


def eligible(book: Book, kinds: Cells, job: int) -> Bools:
    """[K] whether the job accepts the cell: limit, region, trust, tier, window."""
    regions = book.job_regions[job] >> kinds.region.astype(np.uint64) & np.uint64(1)
    accepted: Bools = (
        (book.job_limit[job][kinds.gpu_class] > 0)
        & (regions == 1)
        & (kinds.trust <= book.job_trust[job])
        & (kinds.tier <= book.job_tier[job])
        & (kinds.long >= bool(book.job_long[job]))
    )
    return accepted


def terms(book: Book, kinds: Cells, job: int) -> Terms:
    """What one job makes of the book."""
    kappa = float(book.job_kappa[job])
    limit = book.job_limit[job][kinds.gpu_class] * eligible(book, kinds, job)
    return Terms(
        limit=limit,
        risk=kinds.failures * float(book.job_hours_lost[job]) * limit,
        in_node=1 - kappa * kinds.node_penalty,
        in_site=np.where(kinds.site == POOL, 0.0, 1 - kappa * kinds.site_penalty),
        over_sites=_over_sites(book, job),
    )


def _over_sites(book: Book, job: int) -> Floats:
    """[S] η between sites; 0 for a job that never computes in between, or without an uplink."""
    computing = book.site_up_mbps.astype(np.float64) * float(book.job_sync_s[job])
    sending = 16.0 * float(book.job_sync_mb[job])
    return np.divide(
        computing, computing + sending, out=np.zeros(len(computing)), where=computing > 0
    )


def worths(book: Book, size: Ints, level: Ints, job: Ints, node: Ints) -> tuple[Floats, Floats]:
    """(limit · η, risk) of each part of a gang, USD per GPU-hour; `size` and `level` [J]."""
    params, site, gpu_class = book.params, book.node_site[node], book.node_class[node]
    limit, kappa = book.job_limit[job, gpu_class], book.job_kappa[job].astype(float)
    pcie = np.where(book.class_nvlink[gpu_class] == 1, 0.0, params.penalty_node_pcie)
    in_node = np.where(size[job] > 1, 1 - kappa * pcie, 1.0)
    in_site = 1 - kappa * np.array(params.penalty_site)[book.site_net[site]]
    computing = book.site_up_mbps[site].astype(float) * book.job_sync_s[job].astype(float)
    sending = 16.0 * book.job_sync_mb[job].astype(float)
    over = np.divide(computing, computing + sending, out=np.zeros(len(job)), where=computing > 0)
    keeps = np.choose(level[job], [in_node, in_site, over])
    rate = np.array(params.failures_per_gpu_hour)[book.node_tier[node]]
    return limit * keeps, rate * size[job] * book.job_hours_lost[job].astype(float) * limit
