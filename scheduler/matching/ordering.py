"""An order of our own for a book's rows, from their ids and the seed alone: where things are tried in
turn it is fair, and the order in which the rows came means nothing. And sorting, fast."""

from typing import Any, Final

import numpy as np
from numba import njit

from scheduler.matching import book as books
from scheduler.matching.arrays import Array, Ints
from scheduler.matching.book import Book

_DIGIT: Final = 8
"""Bits that are sorted by at a time."""


def mixed(ids: Array, seed: int) -> Array:
    """A one-to-one hash of 64-bit ids that the seed changes: SplitMix64's finaliser."""
    mixed = ids.astype(np.uint64) ^ np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def sorted_by(*keys: Array) -> Ints:
    """The order of rows by the first of these columns, among equals by the second, and so on; who is
    equal in all stays as it came."""
    order: Ints = np.arange(len(keys[0]))
    for key in keys[::-1]:
        order = _sorted(_as_bits(key), order)
    return order


def _as_bits(values: Array) -> Array:
    """Whole numbers without a sign that stand in the same order."""
    if values.dtype.kind == "u":
        return np.ascontiguousarray(values, np.uint64)
    if values.dtype.kind != "f":
        return (values.astype(np.int64) - int(values.min(initial=0))).view(np.uint64)
    bits = (values + 0.0).view(np.int64)  # minus nothing is nothing
    turned = bits ^ (bits >> 63 | np.int64(-(2**63))) if len(bits) and bits.min() < 0 else bits
    return turned.view(np.uint64)


@njit(cache=True, nogil=True)
def in_groups(group: Ints, count: int) -> tuple[Ints, Ints]:
    """(rows group by group, where each of so many groups begins); in a group they stay as they came."""
    start, order = np.zeros(count + 1, np.int64), np.empty(len(group), np.int32)
    for one in group:
        start[one + 1] += 1
    for one in range(count):
        start[one + 1] += start[one]
    next_of = start.copy()
    for row in range(len(group)):
        order[next_of[group[row]]] = row
        next_of[group[row]] += 1
    return order, start


@njit(cache=True, nogil=True)
def _sorted(bits: Array, order: Ints) -> Ints:
    """Rows that stand in some order, in that of their bits; equals stay as they stand. Some bits at a
    time, the lowest first, as far as rows differ in them: faster than comparing."""
    here, now = bits[order], order.copy()
    there, then = np.empty_like(here), np.empty_like(order)
    differ, first = np.uint64(0), np.empty(1 << _DIGIT, np.int64)
    for one in here:
        differ |= one ^ here[0]
    for shift in range(0, 64, _DIGIT):
        if differ >> np.uint64(shift) & np.uint64((1 << _DIGIT) - 1):
            _by_digit(here, now, there, then, np.uint64(shift), first)
            here, there, now, then = there, here, then, now
    return now


@njit(cache=True, nogil=True)
def _by_digit(
    here: Array, now: Ints, there: Array, then: Ints, shift: Any, first: Ints
) -> None:  # fmt: skip
    """Puts numbers and their rows in the order of some of their bits. `first` is where those of a digit
    begin."""
    last = np.uint64(len(first) - 1)
    first[:] = 0
    for row in range(len(here)):
        first[here[row] >> shift & last] += 1
    total = 0
    for digit in range(len(first)):
        count = first[digit]
        first[digit] = total
        total += count
    for row in range(len(here)):
        digit = here[row] >> shift & last
        at = first[digit]
        there[at], then[at] = here[row], now[row]
        first[digit] = at + 1


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
