"""What trades are worth to whom, by the true limits and asks."""

import numpy as np

from scheduler.matching.book import Book
from scheduler.matching.matches import Matches


def utilities(book: Book, matches: Matches) -> dict[str, np.ndarray]:
    """USD per hour of each job [J] and node [N], by the limits and asks of `book`."""
    job, node, gpus = matches.job, matches.node, matches.gpus.astype(float)
    received = np.maximum(matches.price, book.node_ask[node])
    return {
        "buyers": np.bincount(job, gpus * (worth(book, matches) - matches.price), book.jobs),
        "sellers": np.bincount(node, gpus * (received - book.node_ask[node]), book.nodes),
    }


def worth(book: Book, matches: Matches) -> np.ndarray:
    """[M] limit · η − risk, USD per GPU-hour."""
    job, node, params = matches.job, matches.node, book.params
    site, gpu_class = book.node_site[node], book.node_class[node]
    size = np.bincount(job, matches.gpus, book.jobs)[job]
    kappa, limit = book.job_kappa[job].astype(float), book.job_limit[job, gpu_class]
    slow = np.where(book.class_nvlink[gpu_class] == 1, 0.0, params.penalty_node_pcie)
    pace = book.site_up_mbps[site].astype(float) * book.job_sync_s[job].astype(float)
    over = pace / np.maximum(pace + 16 * book.job_sync_mb[job].astype(float), 1e-9)
    in_site = 1 - np.array(params.penalty_site)[book.site_net[site]] * kappa
    in_node = np.where(size > 1, 1 - slow * kappa, 1.0)
    keeps = np.choose(np.maximum(matches.level[job], 0), [in_node, in_site, over])
    rate = np.array(params.failures_per_gpu_hour)[book.node_tier[node]]
    return np.asarray(limit * (keeps - rate * size * book.job_hours_lost[job].astype(float)))
