"""Open offers as columns beside their rows: what is looked at of all of them at once.

Thousands of offers come in a few kinds. Whatever hangs on neither price, free GPUs, disk nor the node
itself is judged once for each kind.
"""

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cached_property
from itertools import compress
from operator import attrgetter
from typing import Final
from uuid import UUID

import numpy as np

from marketplace.core.fit import Stands
from marketplace.core.hardware import REGIONS
from scheduler import lots
from scheduler.lots import Lot
from scheduler.matching.arrays import Array, Bools, Ints

ROW: Final = np.dtype(
    [
        ("number", "u8"), ("ask", "i8"), ("disk", "i8"), ("free", "i4"), ("kind", "i4"),
        ("place", "i4"), ("tier", "i1"), ("nvlink", "?"), ("timed", "?"), ("region", "i1"),
        ("trust", "i1"), ("net", "i1"), ("up_mbps", "f4"),
    ]
)  # fmt: skip
"""One offer: `number` from its id, `ask` gross in micros, `kind` and `place` as `Numbers` has them,
`timed` where it has windows, and of its site what the book minds."""


_OWN: Final = {"node", "org", "ask", "free", "disk_bytes"}
_kind_of: Final = attrgetter(*(each.name for each in fields(Stands) if each.name not in _OWN))
"""All that `Stands` says of an offer beside what is its own."""


class Numbers:
    """What kinds and places are called by; those known keep their numbers."""

    def __init__(self) -> None:
        self._of: tuple[dict[Hashable, int], dict[Hashable, int]] = ({}, {})

    def row(self, lot: Lot) -> tuple[int | float | bool, ...]:
        """An offer as a ROW."""
        of, site, (kinds, places) = lot.stands, lot.site, self._of
        kind = (_kind_of(of), of.org if of.own_org_only else "", lot.nvlink)
        return (
            lot.offer_id.int & (1 << 64) - 1, of.ask, of.disk_bytes, lot.free,
            kinds.setdefault(kind, len(kinds)), places.setdefault(lot.place, len(places)), of.tier,
            lot.nvlink, bool(lot.windows), REGIONS.index(site.region), site.trust, site.network,
            site.uplink_mbps,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Columns:
    """Offers in a stable order, each as a lot and as a row. Never changed: what has moved makes new
    ones, in a copy of the rows."""

    lots: Sequence[Lot]
    rows: Array
    """[N] of ROW."""
    _numbers: Numbers

    @classmethod
    def of(cls, found: Sequence[Lot]) -> "Columns":
        """These, in their order."""
        return cls(found, np.zeros(0, ROW), Numbers())._with_rows()

    def _with_rows(self) -> "Columns":
        rows = np.array([self._numbers.row(lot) for lot in self.lots], ROW)
        return Columns(self.lots, rows, self._numbers)

    def moved(self, gone: Iterable[UUID], found: Sequence[Lot]) -> "Columns":
        """Without those that are gone, and with those found, in the order of their ids, in which all
        must stand."""
        here, out = list(self.lots), sorted(self._position(offer) for offer in gone)
        for at in reversed(out):
            del here[at]
        new = sorted(found, key=_id)
        to = [bisect_left(here, _id(lot), key=_id) for lot in new]
        for at, lot in zip(reversed(to), reversed(new), strict=True):
            here.insert(at, lot)
        rows = np.array([self._numbers.row(lot) for lot in new], ROW)
        rows = np.insert(np.delete(self.rows, out), to, rows)
        return Columns(here, rows, self._numbers)

    def _position(self, offer: UUID) -> int:
        return bisect_left(self.lots, offer.int, key=_id)

    def standing(self, now: datetime) -> "Columns":
        """Those that stand now. One query."""
        stands = lots.which_stand(self.lots, now=now)
        return self if all(stands) else self._only(np.array(stands))

    def _only(self, those: Bools) -> "Columns":
        here = list(compress(self.lots, those.tolist()))
        return Columns(here, self.rows[those], self._numbers)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def kinds(self) -> tuple[Ints, Ints]:
        """(the first offer of each kind, each offer's kind by its position among these)."""
        _, first, of_row = np.unique(self.rows["kind"], return_index=True, return_inverse=True)
        return first, of_row

    def sites(self) -> tuple[Mapping[str, Array], Ints]:
        """The places that offers are in, each as its first offer's site has it, by the book's names;
        and each offer's."""
        _, first, of_row = np.unique(self.rows["place"], return_index=True, return_inverse=True)
        at = self.rows[first]
        return {f"site_{name}": at[name] for name in ("region", "trust", "net", "up_mbps")}, of_row


def _id(lot: Lot) -> int:
    return lot.offer_id.int
