"""Named arrays with a schema: checked by name, kept in `.npz` files.

The order book and the matches are each a dataclass of such arrays. A file holds exactly the
arrays of its schema, little-endian; arrays named `x_…` are somebody's notes and are ignored.
"""

import hashlib
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from marketplace.core.errors import Invalid

Array: TypeAlias = NDArray[Any]
Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.integer[Any]]
Bools: TypeAlias = NDArray[np.bool_]
Source: TypeAlias = Path | IO[bytes]
Record: TypeAlias = Any
"""One row of a structured array: fields by name."""


class Column(NamedTuple):
    """What an array must be: its type, its axes by name, and the least and most it may hold; and
    whether it may be missing."""

    dtype: str
    axes: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    optional: bool = False


Schema: TypeAlias = Mapping[str, Column]

TEXT = "U"
"""The dtype of a column that holds one string."""


def conform(arrays: Mapping[str, Array], schema: Schema, **sizes: int) -> dict[str, int]:
    """The length of each axis, after checking every array; `sizes` are lengths known already.

    Raises Invalid, its field the array at fault: missing, unknown, of a wrong type or shape, or
    holding a number out of range (NaN always is).
    """
    for name in sorted(set(arrays) - set(schema)):
        raise Invalid(f"there is no array {name!r}; name your own x_…", field=name)
    for name, column in schema.items():
        if name not in arrays and column.optional:
            continue
        if name not in arrays:
            raise Invalid(f"the array {name!r} is missing", field=name)
        _check_type(name, arrays[name], column)
        for axis, length in zip(column.axes, arrays[name].shape, strict=True):
            wanted = int(axis) if axis.isdigit() else sizes.setdefault(axis, length)
            if length != wanted:
                raise Invalid(
                    f"{name} has {length} entries along {axis}, where {wanted} are needed",
                    field=name,
                )
        _check_range(name, arrays[name], column)
    return sizes


def read(path: Source, schema: Schema) -> dict[str, Array]:
    """The arrays of a `.npz` file, checked by `conform`. Raises Invalid, or OSError."""
    arrays = {name: array for name, array in unpack(path).items() if not name.startswith("x_")}
    conform(arrays, schema)
    return arrays


def unpack(path: Source) -> dict[str, Array]:
    """All arrays of a `.npz` file, notes too, unchecked. Raises Invalid, or OSError."""
    what = path if isinstance(path, Path) else "this file"
    arrays: dict[str, Array] = {}
    name = ""
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                arrays[name] = archive[name]
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        why = f"{name}: {error}" if name else error
        raise Invalid(f"{what} is not a .npz file of plain arrays: {why}", field=name) from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy hands out other content as it stands
            raise Invalid(f"{name} in {what} is not an array", field=name)
    return arrays


def write(path: Path | IO[bytes], arrays: Mapping[str, Array]) -> None:
    """Writes a `.npz` file; the same arrays give the same bytes."""
    named = {name: arrays[name] for name in sorted(arrays)}
    np.savez_compressed(path, allow_pickle=False, **named)


def digest(arrays: Mapping[str, Array]) -> str:
    """sha256, in hex, over names, types, shapes and contents: what a round publishes."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        text = array.dtype.kind == TEXT
        content = str(array).encode() if text else np.ascontiguousarray(array).tobytes()
        kind = TEXT if text else array.dtype.str
        total.update(f"{name} {kind} {array.shape} {len(content)}\n".encode() + content)
    return total.hexdigest()


def _check_type(name: str, array: Array, column: Column) -> None:
    right = array.dtype.kind == TEXT if column.dtype == TEXT else array.dtype.str == column.dtype
    if not right:
        raise Invalid(f"{name} must be of type {column.dtype}, not {array.dtype.str}", field=name)
    if array.ndim != len(column.axes):
        raise Invalid(
            f"{name} must have {len(column.axes)} dimensions, not {array.ndim}", field=name
        )


def _check_range(name: str, array: Array, column: Column) -> None:
    if column.dtype == TEXT:
        return
    wrong = ~((array >= column.low) & (array <= column.high))
    if array.dtype.kind == "f":
        wrong |= ~np.isfinite(array)
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise Invalid(
            f"{name}{list(where) if where else ''} is {array[where]}; it must be a number"
            f" from {column.low:g} to {column.high:g}",
            field=name,
        )
