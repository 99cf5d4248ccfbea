"""The best welfare any legal matching of a small book could reach, by a mixed-integer program.

A second, slow statement of the rules, on HiGHS, that shares no code with the engine. It knows no
prices, so it may let trades that no uniform price supports: what it finds is a ceiling.
"""

from dataclasses import dataclass, field
from typing import Any

import highspy
import numpy as np

from scheduler.matching.book import Book


@dataclass
class _Program:
    """Rows and columns of one maximisation, filled as the rules are written down."""

    model: highspy.Highs = field(default_factory=highspy.Highs)
    on_node: dict[int, list] = field(default_factory=dict)
    of_job: dict[int, list] = field(default_factory=dict)

    def choice(self, job: int, gain: float) -> Any:
        variable = self.model.addBinary(obj=gain)
        self.of_job.setdefault(job, []).append(variable)
        return variable

    def gpus(self, node: int, most: int, gain: float) -> Any:
        variable = self.model.addIntegral(0, most, obj=gain)
        self.on_node.setdefault(node, []).append(variable)
        return variable


def optimum(book: Book, seconds: float = 60.0) -> float:
    """USD per hour; raises if HiGHS can't prove it in time."""
    program = _Program()
    program.model.silent()
    for job in range(book.jobs):
        for size in range(book.job_gpus_min[job], book.job_gpus_max[job] + 1):
            for gpu_class in np.flatnonzero(book.job_limit[job]):
                _add(program, book, job, int(size), int(gpu_class))
    for node, used in program.on_node.items():
        program.model.addConstr(sum(used) <= int(book.node_gpus[node]))
    for choices in program.of_job.values():
        program.model.addConstr(sum(choices) <= 1)
    program.model.setOptionValue("time_limit", seconds)
    program.model.setOptionValue("mip_rel_gap", 1e-7)
    program.model.setOptionValue("threads", 1)
    program.model.setMaximize()
    program.model.run()
    status = program.model.getModelStatus()
    if status not in (highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kModelEmpty):
        raise AssertionError(f"HiGHS: {status}")
    return program.model.getInfo().objective_function_value


@dataclass
class _Way:
    """One job on so many GPUs of one class, and the nodes that its terms admit, by site."""

    program: _Program
    book: Book
    job: int
    size: int
    gpu_class: int

    def nodes(self) -> dict[int, list[int]]:
        by_site: dict[int, list[int]] = {}
        for node in range(self.book.nodes):
            if _fits(self.book, self.job, node, self.gpu_class):
                by_site.setdefault(int(self.book.node_site[node]), []).append(node)
        return by_site

    def gain(self, node: int, keeps: float) -> float:
        """Of each GPU: limit · η − risk − ask."""
        book, job = self.book, self.job
        limit = float(book.job_limit[job, self.gpu_class])
        rate = book.params.failures_per_gpu_hour[book.node_tier[node]]
        risk = rate * self.size * float(book.job_hours_lost[job]) * limit
        return limit * keeps - risk - float(book.node_ask[node])


def _add(program: _Program, book: Book, job: int, size: int, gpu_class: int) -> None:
    """Every way in which one job could run on so many GPUs of one class."""
    way = _Way(program, book, job, size, gpu_class)
    by_site = way.nodes()
    for here in by_site.values():
        for node in here:
            _add_node(way, node)
    if size > 1 and book.job_level[job] >= 1:
        for site, here in by_site.items():
            _add_site(way, site, here)
    if size > 1 and book.job_level[job] >= 2:
        _add_sites(way, by_site)


def _add_node(way: _Way, node: int) -> None:
    book, size = way.book, way.size
    if book.node_gpus[node] >= size:
        slow = (
            0.0 if book.class_nvlink[way.gpu_class] or size == 1 else book.params.penalty_node_pcie
        )
        keeps = 1 - slow * float(book.job_kappa[way.job])
        choice = way.program.choice(way.job, size * way.gain(node, keeps))
        way.program.on_node.setdefault(node, []).append(size * choice)


def _add_site(way: _Way, site: int, here: list[int]) -> None:
    """At least two nodes of it, so none gives all."""
    book, size, program = way.book, way.size, way.program
    if len(here) > 1 and sum(book.node_gpus[here]) >= size:
        keeps = 1 - book.params.penalty_site[book.site_net[site]] * float(book.job_kappa[way.job])
        shares = [
            program.gpus(node, min(size - 1, int(book.node_gpus[node])), way.gain(node, keeps))
            for node in here
        ]
        program.model.addConstr(sum(shares) == size * program.choice(way.job, 0.0))


def _add_sites(way: _Way, by_site: dict[int, list[int]]) -> None:
    book, job, size, program = way.book, way.job, way.size, way.program
    everywhere, uses = [], []
    for site, here in by_site.items():
        pace = float(book.site_up_mbps[site]) * float(book.job_sync_s[job])
        if pace == 0:
            continue
        keeps = 1 / (1 + 16 * float(book.job_sync_mb[job]) / pace)
        use = program.model.addBinary()
        shares = [program.gpus(n, int(book.node_gpus[n]), way.gain(n, keeps)) for n in here]
        program.model.addConstr(sum(shares) >= int(book.job_site_gpus_min[job]) * use)
        program.model.addConstr(sum(shares) <= size * use)
        everywhere += shares
        uses.append(use)
    if not uses:
        return
    choice = program.choice(job, 0.0)
    program.model.addConstr(sum(everywhere) == size * choice)
    program.model.addConstr(sum(uses) >= 2 * choice)
    program.model.addConstr(sum(uses) <= int(book.job_sites_max[job]) * choice)


def _fits(book: Book, job: int, node: int, gpu_class: int) -> bool:
    site = book.node_site[node]
    return bool(
        book.node_class[node] == gpu_class
        and int(book.job_regions[job]) >> int(book.site_region[site]) & 1
        and book.site_trust[site] <= book.job_trust[job]
        and book.node_tier[node] <= book.job_tier[job]
        and book.node_long[node] >= book.job_long[job]
        and book.node_gpus[node] > 0
    )
