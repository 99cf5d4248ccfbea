"""An order of our own for a book's rows, from their ids and the seed alone: where things are tried in
turn it is fair, and the order in which the rows came means nothing. And sorting, fast."""

import math
from typing import Final

import numpy as np

from scheduler.matching import book as books
from scheduler.matching.arrays import Array, Ints
from scheduler.matching.book import Book

_PACKED: Final = 2**63


def mixed(ids: Array, seed: int) -> Array:
    """A one-to-one hash of 64-bit ids that the seed changes: SplitMix64's finaliser."""
    mixed = ids.astype(np.uint64) ^ np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def sorted_by(*keys: Array) -> Ints:
    """The order of rows by the first of these columns, among equals by the second, and so on; who is
    equal in all stays as it came. Columns packed into one number each sort five times as fast."""
    columns = [_ranks(key) if key.dtype.kind == "f" else key.astype(np.int64) for key in keys]
    columns.append(np.arange(len(keys[0])))
    least = [int(column.min(initial=0)) for column in columns]
    spans = [
        int(column.max(initial=0)) - low + 1 for column, low in zip(columns, least, strict=True)
    ]
    if math.prod(spans) >= _PACKED:
        return np.lexsort(columns[::-1])
    packed = np.zeros(len(keys[0]), np.int64)
    for column, low, span in zip(columns, least, spans, strict=True):
        packed *= span
        packed += column - low
    return np.argsort(packed)


def _ranks(values: Array) -> Ints:
    """Of each value among the distinct ones."""
    order = np.argsort(values)
    ranks = np.empty(len(values), np.int64)
    ranks[order] = np.cumsum(np.diff(values[order], prepend=values[order[:1]]) != 0)
    return ranks


def in_our_order(book: Book, jobs: Ints, nodes: Ints) -> tuple[Book, Ints]:
    """These of its jobs and nodes, in this order, and its classes and sites, renumbered as they first
    appear among the nodes; and the old numbers of the classes."""
    classes = _as_they_come(book.node_class[nodes], len(book.class_nvlink))
    sites = _as_they_come(book.node_site[nodes], len(book.site_region))
    return books.rearranged(book, jobs, nodes, classes, sites), classes


def _as_they_come(of_node: Ints, count: int) -> Ints:
    """The old numbers in their new order; those of no node come last."""
    first = np.arange(count) + len(of_node)
    first[of_node[::-1]] = np.arange(len(of_node))[::-1]
    return np.argsort(first)
