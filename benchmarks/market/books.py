"""The books that the benchmarks clear, all from seeds."""

from dataclasses import replace
from typing import Final

import numpy as np

from scheduler.matching.arrays import Floats
from scheduler.matching.book import JOBS, NODES, Book
from scheduler.matching.matches import Matches
from scheduler.matching.synthetic import Plan, make

_GANGS: Final = ((1, 0.30), (2, 0.10), (4, 0.14), (8, 0.22), (16, 0.12), (32, 0.07), (64, 0.035),
                 (128, 0.01), (256, 0.004), (512, 0.001))  # fmt: skip
"""GPUs of a job → share of the jobs, where gangs are many: 13 GPUs in the mean."""
LARGE: Final = ("default", "gang-heavy", "25,000 jobs", "60 % alone")


def large(kind: str, seed: int, scale: int = 1) -> Book:
    """One of LARGE, `scale` times smaller."""
    jobs, nodes = 10_000 // scale, 50_000 // scale
    if kind == "25,000 jobs":
        return make(Plan(jobs=25_000 // scale, nodes=nodes, seed=seed))
    if kind == "60 % alone":
        return make(Plan(jobs=jobs, nodes=nodes, seed=seed, alone=0.6))
    book = make(Plan(jobs=jobs, nodes=nodes, seed=seed))
    return gang_heavy(book, seed) if kind == "gang-heavy" else book


def gang_heavy(book: Book, seed: int) -> Book:
    """The same jobs, many more of which want several nodes."""
    sizes, shares = zip(*_GANGS, strict=True)
    random = np.random.Generator(np.random.PCG64([seed, 1]))
    return resized(book, random.choice(sizes, book.jobs, p=np.array(shares) / sum(shares)), seed)


def resized(book: Book, gpus: np.ndarray, seed: int) -> Book:
    """The same jobs with other sizes, none of them elastic; what no node holds may go further."""
    random = np.random.Generator(np.random.PCG64([seed, 2]))
    level = np.where(gpus > 8, random.choice([1, 2], book.jobs), book.job_level)
    return replace(
        book,
        job_gpus_min=gpus.astype("<i4"),
        job_gpus_max=gpus.astype("<i4"),
        job_level=level.astype("|i1"),
        job_site_gpus_min=np.minimum(book.job_site_gpus_min, gpus).astype("<i2"),
    )


def churned(book: Book, share: float, seed: int) -> Book:
    """The next round's book: so many of the jobs are others, so many of the nodes ask anew."""
    random = np.random.Generator(np.random.PCG64([seed, 3]))
    other = make(Plan(jobs=book.jobs, nodes=1, seed=seed + 1_000_003))
    new = random.random(book.jobs) < share
    columns = {}
    for name in JOBS:
        old = getattr(book, name)
        mask = new[:, None] if old.ndim == 2 else new
        columns[name] = np.where(mask, getattr(other, name), old).astype(old.dtype)
    columns["job_id"] = np.where(new, book.job_id + np.uint64(10**9), book.job_id)
    moved = random.random(book.nodes) < share
    ask = np.where(moved, book.node_ask * random.uniform(0.9, 1.1, book.nodes), book.node_ask)
    return replace(book, node_ask=np.round(ask, 6), **columns)


def following(
    book: Book, matches: Matches, share: float, seed: int, balance: Floats
) -> tuple[Book, Floats]:
    """The next round's book as a market has it, and of each of its nodes what balanced it: who was
    placed has left with their GPUs; so many new jobs come, and so many nodes are all free again."""
    random = np.random.Generator(np.random.PCG64([seed, 4]))
    free = book.node_gpus - np.bincount(matches.node, matches.gpus, book.nodes)
    free = np.where(random.random(book.nodes) < share, book.node_gpus, free).astype("|i1")
    nodes, waiting = np.flatnonzero(free), np.flatnonzero(matches.level < 0)
    columns = {name: getattr(book, name)[nodes] for name in NODES} | {"node_gpus": free[nodes]}
    new = make(Plan(jobs=round(share * book.jobs), nodes=1, seed=seed + 1_000_003))
    for name in JOBS:
        columns[name] = np.concatenate([getattr(book, name)[waiting], getattr(new, name)])
    columns["job_id"] = np.arange(len(columns["job_id"]), dtype="<u8")
    return replace(book, **columns), balance[nodes]
