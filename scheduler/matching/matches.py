"""What a clearing decides: who runs where at which price, and the proof of its quality."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scheduler.matching import arrays
from scheduler.matching.arrays import Array, Bools, Column, Schema, Source

SCHEMA: Final[Schema] = {
    "job": Column("<i4", ("M",), 0),
    "node": Column("<i4", ("M",), 0),
    "gpus": Column("|i1", ("M",), 1, 8),
    "price": Column("<f8", ("M",), 0),
    "level": Column("|i1", ("J",), -1, 2),
    "class": Column("<i2", ("J",), -1),
    "cell_price": Column("<f8", ("N", "4"), 0),
    "balance": Column("<f8", ("N", "4"), 0, optional=True),
    "welfare": Column("<f8"),
    "bound": Column("<f8"),
    "make_whole": Column("<f8", (), 0),
    "seconds": Column("<f8", (), 0),
}
_SCALARS: Final = ("welfare", "bound", "make_whole", "seconds")


@dataclass(frozen=True, eq=False)
class Matches:
    """Rows of (job, node, slot), indexes into the book; a gang is all rows of its job.

    `welfare` is Σ over rows of GPUs · (limit · η − ask − risk), `bound` what no matches of this
    book could exceed, `make_whole` what prices leave sellers short of their asks; USD per hour.
    """

    job: NDArray[np.int32]
    node: NDArray[np.int32]
    gpus: NDArray[np.int8]  # 1, 2, 4 or 8
    price: NDArray[np.float64]  # the buyer's, USD per GPU-hour
    level: NDArray[np.int8]  # [J] reached: 0 one node, 1 one site, 2 several; -1 not placed
    gpu_class: NDArray[np.int16]  # [J]; -1 not placed. Named `class` in the file.
    cell_price: NDArray[np.float64]  # [N, 4] the ladder of each node's cell: slots of 1, 2, 4, 8
    welfare: float
    bound: float
    make_whole: float
    seconds: float
    """Time that the clearing took; the engine has no clock, whoever ran it fills this in."""
    balance: NDArray[np.float64] | None = None
    """[N, 4] what would balance each node's cell: the prices that prove the bound, which is loosened by
    raising them to the asks that were let. In small books `cell_price`, where that proves more. None in
    files from before it was kept; `cell_price` proves
    those."""

    def __post_init__(self) -> None:
        """Raises Invalid naming the array at fault."""
        arrays.conform(self.as_arrays(), SCHEMA)

    def as_arrays(self) -> dict[str, Array]:
        """Every array by its name in the file format."""
        named = {item.name: getattr(self, item.name) for item in fields(self)}
        named["class"] = named.pop("gpu_class")
        return {
            name: np.array(array, "<f8") if name in _SCALARS else array
            for name, array in named.items()
            if array is not None
        }


def save(matches: Matches, path: Path) -> None:
    """Writes the matches as `.npz`."""
    arrays.write(path, matches.as_arrays())


def load(path: Source) -> Matches:
    """Reads matches; raises Invalid naming the array that is unknown, missing or wrong."""
    return of_arrays(arrays.read(path, SCHEMA))


def of_arrays(named: dict[str, Array]) -> Matches:
    """From all arrays by their names. Raises Invalid."""
    values: dict[str, Any] = {n: float(a) if n in _SCALARS else a for n, a in named.items()}
    return Matches(gpu_class=values.pop("class"), **values)


def digest(matches: Matches) -> str:
    """sha256 in hex: the same matches, the same digest, on any machine."""
    return arrays.digest(matches.as_arrays())


def without(matches: Matches, dropped: Bools) -> Matches:
    """The same without the gangs of some jobs [J]; amounts stay as they were."""
    kept = ~dropped[matches.job]
    return replace(
        matches,
        **{name: getattr(matches, name)[kept] for name in ("job", "node", "gpus", "price")},
        level=np.where(dropped, -1, matches.level).astype("|i1"),
        gpu_class=np.where(dropped, -1, matches.gpu_class).astype("<i2"),
    )
