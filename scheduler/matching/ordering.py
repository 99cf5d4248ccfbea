"""An order of our own for a book's rows, from their ids and the seed alone: where things are tried in
turn it is fair, and the order in which the rows came means nothing."""

import numpy as np

from scheduler.matching import book as books
from scheduler.matching.arrays import Array, Ints
from scheduler.matching.book import Book


def mixed(ids: Array, seed: int) -> Array:
    """A one-to-one hash of 64-bit ids that the seed changes: SplitMix64's finaliser."""
    mixed = ids.astype(np.uint64) ^ np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def with_places_as_they_come(book: Book) -> tuple[Book, Ints]:
    """Its classes and sites, renumbered as they first appear among its nodes; and the old numbers of
    the classes."""
    classes = _as_they_come(book.node_class, len(book.class_nvlink))
    sites = _as_they_come(book.node_site, len(book.site_region))
    return books.renumbered(book, classes, sites), classes


def _as_they_come(of_node: Ints, count: int) -> Ints:
    """The old numbers in their new order; those of no node come last."""
    each, first = np.unique(of_node, return_index=True)
    seen = each[np.argsort(first)].astype(np.int64)
    return np.concatenate([seen, np.setdiff1d(np.arange(count), seen)])
