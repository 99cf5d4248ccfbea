"""Made-up order books from a seed: for trials, benchmarks and tests.

Classes and prices are those of 2026 (rough USD per GPU-hour); nearly all jobs want one GPU or one
node, as in the traces of real clusters; the jobs' mix and their bids are ours.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from marketplace.core.hardware import REGIONS
from marketplace.core.money import MICRO
from scheduler.matching.arrays import Array, Floats, Ints
from scheduler.matching.book import Book, Params

# Class → usual ask, speed relative to the first, NVLink, share of the fleet.
_CLASSES: Final = (
    ("h100-sxm", 2.00, 1.00, 1, 0.16),
    ("h200-sxm", 2.45, 1.20, 1, 0.08),
    ("b200", 4.70, 2.20, 1, 0.04),
    ("a100-sxm-80", 1.10, 0.50, 1, 0.12),
    ("l40s", 0.70, 0.32, 0, 0.15),
    ("rtx-4090", 0.38, 0.22, 0, 0.30),
    ("rtx-a6000", 0.42, 0.18, 0, 0.15),
)
CLASSES: Final = tuple(row[0] for row in _CLASSES)
# GPUs of a job → share of the jobs.
_SIZES: Final = ((1, 0.5), (2, 0.12), (4, 0.13), (8, 0.15), (16, 0.06), (32, 0.03), (64, 0.01))


@dataclass(frozen=True)
class Plan:
    """How large a book, and how its nodes stand: `alone` is the share in sites of their own."""

    jobs: int
    nodes: int
    seed: int
    alone: float = 0.3


def make(plan: Plan) -> Book:
    """The book of a plan; the same plan makes the same book."""
    random = np.random.Generator(np.random.PCG64(plan.seed))
    sites = _sites(random, plan)
    classes = {"class_nvlink": np.array([row[3] for row in _CLASSES], "|i1")}
    nodes = _nodes(random, plan, sites)
    jobs = _jobs(random, plan)
    del sites["of_node"]
    return Book(**sites, **classes, **nodes, **jobs, params=Params(seed=plan.seed))


def _sites(random: np.random.Generator, plan: Plan) -> dict[str, Any]:
    """Sites of some 20 nodes and sites of one; `of_node` says which node stands where."""
    lone = round(plan.nodes * plan.alone)
    shared = max(1, round((plan.nodes - lone) / 20)) if plan.nodes > lone else 0
    count = shared + lone
    home = np.arange(count) >= shared
    return {
        "site_region": random.integers(0, len(REGIONS), count).astype("|i1"),
        "site_trust": np.where(home, 3, random.choice(3, count)).astype("|i1"),
        "site_net": np.where(home, 2, random.choice(3, count, p=[0.3, 0.2, 0.5])).astype("|i1"),
        "site_up_mbps": np.where(
            home, random.choice([20, 50, 100, 500], count), random.choice([1e3, 1e4], count)
        ).astype("<f4"),
        "of_node": np.concatenate(
            [random.integers(0, max(shared, 1), plan.nodes - lone), np.arange(shared, count)]
        ),
    }


def _nodes(random: np.random.Generator, plan: Plan, sites: dict[str, Any]) -> dict[str, Any]:
    shares = np.array([row[4] for row in _CLASSES])
    site = sites["of_node"]
    # A site runs one or two classes, so that its gangs find their like.
    usual = random.choice(len(_CLASSES), (len(sites["site_region"]), 2), p=shares)
    kind = usual[site, (random.random(plan.nodes) < 0.25).astype(int)]
    price = np.array([row[1] for row in _CLASSES])[kind]
    free = random.choice([1, 2, 4, 8], plan.nodes, p=[0.40, 0.20, 0.20, 0.20])
    return {
        "node_id": np.arange(plan.nodes, dtype="<u8"),
        "node_class": kind.astype("<i2"),
        "node_site": site.astype("<i4"),
        "node_gpus": free.astype("|i1"),
        "node_ask": _micros(price * random.lognormal(0, 0.25, plan.nodes)),
        "node_tier": random.choice(3, plan.nodes, p=[0.3, 0.5, 0.2]).astype("|i1"),
        "node_long": (random.random(plan.nodes) < 0.7).astype("|i1"),
    }


def _jobs(random: np.random.Generator, plan: Plan) -> dict[str, Any]:
    count = plan.jobs
    sizes, shares = zip(*_SIZES, strict=True)
    gpus = random.choice(sizes, count, p=shares)
    small = random.choice(3, count, p=[0.7, 0.2, 0.1])
    level = np.where(gpus > 8, random.choice([1, 2], count), small)
    elastic = random.random(count) < 0.1
    return {
        "job_id": np.arange(count, dtype="<u8"),
        "job_gpus_min": gpus.astype("<i4"),
        "job_gpus_max": np.where(elastic, 2 * gpus, gpus).astype("<i4"),
        "job_level": level.astype("|i1"),
        "job_limit": _limits(random, count),
        "job_kappa": random.beta(2, 4, count).astype("<f4"),
        "job_hours_lost": random.uniform(0.1, 1.0, count).astype("<f4"),
        "job_regions": _regions(random, count),
        "job_trust": random.choice(4, count, p=[0.1, 0.2, 0.2, 0.5]).astype("|i1"),
        "job_tier": random.choice(3, count, p=[0.1, 0.4, 0.5]).astype("|i1"),
        "job_long": (random.random(count) < 0.2).astype("|i1"),
        "job_age_h": random.exponential(0.5, count).astype("<f4"),
        "job_sync_mb": random.choice([20.0, 270.0, 2000.0], count).astype("<f4"),
        "job_sync_s": random.choice([30.0, 120.0, 600.0], count).astype("<f4"),
        "job_site_gpus_min": np.minimum(random.choice([1, 2, 4], count), gpus).astype("<i2"),
        "job_sites_max": random.choice([2, 4, 8], count).astype("<i2"),
    }


def _limits(random: np.random.Generator, count: int) -> Floats:
    """A bid for some classes: what an hour of the first is worth, times each one's speed."""
    worth = 2.2 * random.lognormal(0, 0.35, (count, 1))
    usual = np.array([row[2] for row in _CLASSES])
    speed = usual * random.lognormal(0, 0.15, (count, len(CLASSES)))
    wanted = random.random((count, len(CLASSES))) < 0.5
    wanted[np.arange(count), random.integers(0, len(CLASSES), count)] = True
    return np.where(wanted, _micros(worth * speed), 0.0)


def _regions(random: np.random.Generator, count: int) -> Array:
    """Anywhere, or a few regions."""
    mask = np.full(count, (1 << len(REGIONS)) - 1, "<u8")
    for job in np.flatnonzero(random.random(count) < 0.4):
        few: Ints = random.choice(len(REGIONS), 7, replace=False)
        mask[job] = sum(1 << int(region) for region in few)
    return mask


def _micros(amounts: Floats) -> Floats:
    return np.round(amounts * MICRO) / MICRO
