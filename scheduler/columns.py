"""Open offers as columns beside their rows: what is looked at of all of them at once.

Thousands of offers come in hundreds of kinds of a few makes. Whatever hangs on neither price, free
GPUs, disk nor the node itself is judged once for each kind; and if it doesn't hang on where a machine
stands, how large it is and how far it is relied on, once for each make.
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
from scheduler.matching.cells import distinct

ROW: Final = np.dtype(
    [
        ("number", "u8"), ("ask", "i8"), ("disk", "i8"), ("free", "i4"), ("kind", "i4"),
        ("make", "i4"), ("place", "i4"), ("tier", "i1"), ("nvlink", "?"), ("timed", "?"),
        ("region", "i1"), ("trust", "i1"), ("net", "i1"), ("up_mbps", "f4"),
    ]
)  # fmt: skip
"""One offer: `number` from its id, `ask` gross in micros, `kind`, `make` and `place` as `Numbers` has
them, `timed` where it has windows, and of its site what the book minds."""
_OWN: Final = {"node", "org", "ask", "free", "disk_bytes"}
_WHERE: Final = {"gpus", "trust", "tier", "region", "gangs"}
_make_of: Final = attrgetter(
    *(each.name for each in fields(Stands) if each.name not in _OWN | _WHERE)
)
_kind_of: Final = attrgetter(*sorted(_WHERE))
"""Together all that `Stands` says of an offer beside what is its own."""


class Numbers:
    """What kinds, makes and places are called by; those known keep their numbers."""

    def __init__(self) -> None:
        self._kinds: dict[Hashable, int] = {}
        self._makes: dict[Hashable, int] = {}
        self._places: dict[Hashable, int] = {}

    def rows(self, found: Iterable[Lot]) -> Array:
        """Offers as rows."""
        return np.array([self._row(lot) for lot in found], ROW)

    def _row(self, lot: Lot) -> tuple[int | float | bool, ...]:
        of, site, makes, kinds = lot.stands, lot.site, self._makes, self._kinds
        make = makes.setdefault((_make_of(of), of.org if of.own_org_only else ""), len(makes))
        kind = kinds.setdefault((make, _kind_of(of)), len(kinds))
        place = self._places.setdefault(lot.place, len(self._places))
        return (
            lot.offer_id.int & (1 << 64) - 1, of.ask, of.disk_bytes, lot.free, kind, make, place,
            of.tier, lot.nvlink, bool(lot.windows), REGIONS.index(site.region), site.trust,
            site.network, site.uplink_mbps,
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
        numbers = Numbers()
        return cls(found, numbers.rows(found), numbers)

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
        rows = np.insert(np.delete(self.rows, out), to, self._numbers.rows(new))
        return Columns(here, rows, self._numbers)

    def _position(self, offer: UUID) -> int:
        return bisect_left(self.lots, offer.int, key=_id)

    def standing(self, now: datetime) -> "Columns":
        """Those that stand now. One query."""
        stands = lots.which_stand(self.lots, now=now)
        return self if all(stands) else self.only(np.array(stands))

    def only(self, those: Bools) -> "Columns":
        """Those of them."""
        here = list(compress(self.lots, those.tolist()))
        return Columns(here, self.rows[those], self._numbers)

    def ordered(self, order: Ints) -> "Columns":
        """The same in another order."""
        here = [self.lots[at] for at in order.tolist()]
        return Columns(here, self.rows[order], self._numbers)

    def with_more(self, found: Sequence[Lot]) -> "Columns":
        """And these, at the end."""
        rows = np.concatenate([self.rows, self._numbers.rows(found)])
        return Columns([*self.lots, *found], rows, self._numbers)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def kinds(self) -> tuple[list[Stands], Ints]:
        """(one offer of each kind, each offer's kind by its position among these)."""
        return self._one_of_each("kind")

    @cached_property
    def makes(self) -> tuple[list[Stands], Ints]:
        """The same for makes."""
        return self._one_of_each("make")

    def _one_of_each(self, name: str) -> tuple[list[Stands], Ints]:
        first, of_row = firsts(self.rows[name])
        return [self.lots[at].stands for at in first.tolist()], of_row

    def sites(self) -> tuple[Mapping[str, Array], Ints]:
        """The places that offers are in, each as its first offer's site has it, by the book's names;
        and each offer's."""
        first, of_row = firsts(self.rows["place"])
        at = self.rows[first]
        return {f"site_{name}": at[name] for name in ("region", "trust", "net", "up_mbps")}, of_row


def firsts(*columns: Array) -> tuple[Ints, Ints]:
    """Where each row of these numbers that there is first appears, as they come, and each row's
    position among these."""
    _, first, of_row = distinct(np.stack(columns, axis=1).astype(np.int64))
    order = np.argsort(first)
    return first[order], np.argsort(order)[of_row]


def _id(lot: Lot) -> int:
    return lot.offer_id.int
