"""Compiles the loops, on two processors: numba lets one thread of a process compile at a time.

Numba keeps what it compiles beside the modules. What finds prices and what chooses by them share but
a few small loops, so another process does the first, as `python -m scheduler.matching.compiling`. It
keeps its own in a folder of its own: two that write one loop's index at once could mix up its forms.
"""

import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from scheduler.matching import bound, improving, lowering, searching, settling
from scheduler.matching.ascent import Ascent
from scheduler.matching.book import Book
from scheduler.matching.cells import cells
from scheduler.matching.clear import clear, follow
from scheduler.matching.desks import desk
from scheduler.matching.hoping import hopes
from scheduler.matching.quote import Quotes
from scheduler.matching.ruining import Market
from scheduler.matching.supply import stock, supply
from scheduler.matching.synthetic import CLASSES, Plan, make
from scheduler.matching.tables import tables

log = logging.getLogger(__name__)

_THEIRS: Final = "loops-"
_SMALL: Final = Plan(jobs=4, nodes=4, seed=0)
_LARGER: Final = Plan(jobs=600, nodes=600, seed=0)
_EMPTY: Final = Plan(jobs=4, nodes=0, seed=0)


def compile_all() -> None:
    """All that rounds and quotes need. Numba looks at each module's age alone, not at those that its
    loops call: what was kept of older loops goes first."""
    kept = Path(__file__).parent / "__pycache__"
    for file in kept.glob("*.nb[ci]"):
        file.unlink(missing_ok=True)
    # Numba keeps them elsewhere if it is told to, or can't write here: then all is compiled in turn.
    if "NUMBA_CACHE_DIR" not in os.environ and os.access(kept.parent, os.W_OK):
        _compile_beside(kept)
    # Both together. Large books, those that follow others, and those in which nothing is offered are
    # cleared by some loops of their own.
    for plan in (_SMALL, _EMPTY):
        clear(make(plan))
    balance = follow(make(_LARGER), None, lambda: False)[1]
    follow(make(_LARGER), balance, lambda: False)
    Quotes(make(_SMALL), CLASSES).warm_up()
    _choose(make(_SMALL))


def _compile_beside(kept: Path) -> None:
    """What chooses here, what finds prices in the other process."""
    kept.mkdir(exist_ok=True)
    for older in kept.glob(f"{_THEIRS}*"):
        shutil.rmtree(older, ignore_errors=True)
    with TemporaryDirectory(prefix=_THEIRS, dir=kept) as folder:
        command = (sys.executable, "-m", __spec__.name)
        root = Path(__file__).parents[2]
        with subprocess.Popen(
            command, env=os.environ | {"NUMBA_CACHE_DIR": folder}, cwd=root
        ) as other:
            try:
                # In this order: where quotes came first, the same loops took up to half as long
                # again in small books.
                _choose(make(_SMALL))
                Quotes(make(_SMALL), CLASSES).warm_up()
                if other.wait():
                    log.warning("the process beside failed: its half is compiled here")
            except BaseException:
                other.kill()
                raise
        _take_over(Path(folder), kept)


def _choose(book: Book) -> None:
    """As in a round, but at no prices."""
    of, sold = tables(book, cells(book)), supply(book)
    room = desk(int(of.jobs["most"].max(initial=1)), sold, book.params.seed)
    nowhere = hopes(of, sold, np.arange(0))
    market = Market(of, nowhere, sold, stock(sold), room, *improving.gangs(of, book))
    prices = np.zeros((book.nodes, 4)), np.zeros(book.jobs)
    with ThreadPoolExecutor(1) as thread:
        searching.small(market, thread, thread.submit(lambda: prices), lambda: False)
    # Few larger books need it.
    improving.move(market, np.arange(0, dtype=np.int32))


def _find_prices(book: Book) -> None:
    """As in a round, but nothing is let by them."""
    of = tables(book, cells(book))
    prices = Ascent(of)
    prices.climb(1)
    bound.bound(of, prices.best)
    if book.jobs == _SMALL.jobs:
        lowering.lowered(of, np.zeros(0, settling.LET), prices.best, prices.best)


def _take_over(folder: Path, kept: Path) -> None:
    """What the other made. Of a loop that both have, ours stays: an index belongs to its forms."""
    made = {file.name.rpartition("-")[0] for file in kept.glob("*.nbi")}
    for file in folder.glob("*/*.nb[ci]"):
        if file.name.rpartition("-")[0] not in made:
            file.replace(kept / file.name)


if __name__ == "__main__":
    for plan in (_SMALL, _LARGER):
        _find_prices(make(plan))
