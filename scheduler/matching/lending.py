"""Arrays for compiled loops that count no references.

Numba counts an array's owners, with a locked instruction for each, whenever a loop takes an array
from a tuple, cuts a piece of it or hands it on: in loops like ours that is half of the time. What is
lent has no owner to count. Its lender must hold on to it until the loop has returned.
"""

from typing import Any, Final

from numba.core import cgutils, types
from numba.extending import intrinsic

# Numba's own code has no types.
_cgutils: Any = cgutils
_ARRAY: Any = types.Array
_TUPLE: Any = types.BaseTuple


def _lent(_: Any, held: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return _without_owner(context, builder, signature.args[0], given[0])

    return held(held), generate


def _without_owner(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    if isinstance(kind, _ARRAY):
        array = _cgutils.create_struct_proxy(kind)(context, builder, value=value)
        array.meminfo = _cgutils.get_null_value(array.meminfo.type)
        return array._getvalue()
    if isinstance(kind, _TUPLE):
        for at, each in enumerate(kind):
            part = _without_owner(context, builder, each, builder.extract_value(value, at))
            value = builder.insert_value(value, part, at)
    return value


lent: Final[Any] = intrinsic(_lent)
"""`lent(held)`, in compiled code: the same array, or (named) tuple of such and other things."""
