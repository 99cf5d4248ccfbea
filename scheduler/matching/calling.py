"""Calls of a compiled loop that is called often, with the same arguments each time.

Numba looks at all arguments of a call to tell which of a loop's compiled forms they need. For tuples
of arrays of rows that takes some ten microseconds, more than most orders' answers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numba

# Numba's own code has no types.
_typeof: Final[Any] = numba.typeof


def ready(loop: Any, *held: Any) -> Callable[[], Any]:
    """The call of a loop with these, which are looked at once. It is compiled now, where it isn't."""
    compiled = loop.compile(tuple(_typeof(each) for each in held))
    return partial(compiled, *held)
