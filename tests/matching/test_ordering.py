"""Sorting and telling rows apart, against numpy's own."""

import numpy as np
import pytest

from scheduler.matching.cells import distinct, told_apart
from scheduler.matching.ordering import in_groups, sorted_by

ROWS = [0, 1, 7, 1000, 70_000]


@pytest.mark.parametrize("rows", ROWS)
def test_rows_stand_by_their_first_column_and_equals_as_they_came(rows: int) -> None:
    random = np.random.Generator(np.random.PCG64(rows))
    amounts = np.round(random.uniform(-1, 2, rows), 2) * random.choice([0.0, -0.0, 1e-9, 1e9], rows)
    small = random.integers(-5, 9, rows).astype("i1")
    ids, flags = random.integers(0, 2**64, rows, np.uint64), random.random(rows) < 0.5
    for columns in ((amounts,), (small, amounts), (flags, small, amounts), (small, ids), (ids,)):
        assert (sorted_by(*columns) == np.lexsort(columns[::-1])).all()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("most", [5, 2**40, 2**62])
def test_rows_are_told_apart_however_far_their_numbers_lie_apart(rows: int, most: int) -> None:
    random = np.random.Generator(np.random.PCG64(rows))
    columns = (
        random.integers(-3, most, rows), random.integers(0, 4, rows).astype("i1"),
        random.integers(0, 2**62, rows) // 2**61, random.random(rows) < 0.5,
    )  # fmt: skip
    table = np.stack(columns, axis=1).astype(np.int64)
    first, of_row = told_apart(*columns)
    each, where, which = distinct(table)
    wanted = np.unique(table, axis=0, return_index=True, return_inverse=True) if rows else None
    assert (each == (table if wanted is None else wanted[0])).all()
    assert (first == where).all()
    assert (of_row == which).all()
    if wanted is not None:
        assert (first == wanted[1]).all()
        assert (of_row == wanted[2].reshape(-1)).all()


@pytest.mark.parametrize("rows", ROWS)
def test_groups_keep_their_rows_as_they_came(rows: int) -> None:
    group = np.random.Generator(np.random.PCG64(rows)).integers(0, 9, rows)
    order, start = in_groups(group, 10)
    assert (order == np.argsort(group, kind="stable")).all()
    assert (start == np.searchsorted(np.sort(group), np.arange(11))).all()
