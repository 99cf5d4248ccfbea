"""Money in integer micros (millionths of the settlement currency), and how it is metered.

No float ever holds an amount that is charged. Prices are micros per GPU-hour.
"""

from decimal import Decimal, InvalidOperation
from typing import Final

from marketplace.core.errors import Invalid

MICRO: Final = 1_000_000
BASIS_POINTS: Final = 10_000
SECONDS_PER_HOUR: Final = 3600

# Nothing sane costs more than 1,000 a GPU-hour, and nobody tops up more than a million: a figure
# past these is a slip of the hand, and with them every sum fits a BIGINT with room to spare.
MAX_PRICE: Final = 1_000 * MICRO
MAX_AMOUNT: Final = 1_000_000 * MICRO
_WRITTEN: Final = frozenset("+-.0123456789")


def parse_amount(text: object, *, field: str = "amount", most: int = MAX_AMOUNT) -> int:
    """Micros from a person's "12.50".

    Raises Invalid for anything but a plain positive decimal of at most six places, at most
    `most` micros: no NaN, no infinity, no exponent, no bool, no float (which has already lost
    what was written).
    """
    if isinstance(text, bool | float) or not isinstance(text, str | int | Decimal):
        raise Invalid(f'{field} must be a decimal number in quotes, like "1.25"', field=field)
    written = str(text).strip()
    try:
        amount = Decimal(written)
    except InvalidOperation:
        amount = Decimal("nan")
    if not amount.is_finite() or set(written) - _WRITTEN:
        raise Invalid(
            f"{field} must be a plain decimal number like 1.25, not {written!r}", field=field
        )
    micros = amount * MICRO
    if micros != micros.to_integral_value():
        raise Invalid(f"{field} has more than six decimal places: {written}", field=field)
    if micros <= 0:
        raise Invalid(f"{field} must be more than zero, not {written}", field=field)
    if micros > most:
        raise Invalid(f"{field} is at most {format_amount(most)}, not {written}", field=field)
    return int(micros)


def format_amount(micros: int, *, places: int = 2) -> str:
    """`1_250_000` as "1.25"; as many more places, up to six, as the amount needs."""
    sign = "-" if micros < 0 else ""
    whole, part = divmod(abs(micros), MICRO)
    decimals = f"{part:06d}"
    kept = decimals.rstrip("0").ljust(places, "0")
    return f"{sign}{whole:,}.{kept}" if kept else f"{sign}{whole:,}"


def accrued(price: int, gpus: int, seconds: int) -> int:
    """Micros owed after `seconds` of running on `gpus` GPUs at `price` micros per GPU-hour.

    Rounded down: the fraction of a micro stays with the buyer until it is a whole one.
    """
    return price * gpus * seconds // SECONDS_PER_HOUR


def charge(price: int, gpus: int, since: int, until: int) -> int:
    """Micros for one metering slice, `since` and `until` in seconds from the lease's start.

    Slices telescope: however a lease is cut, they sum to accrued(total), so a late or
    repeated meter can neither lose nor invent a micro.
    """
    return accrued(price, gpus, until) - accrued(price, gpus, since)


def fee(price: int, gpus: int, since: int, until: int, *, take_bps: int) -> int:
    """The platform's share of the same slice, micros; telescopes too.

    Rounded down on the running total, so the odd micro goes to the supplier.
    """
    return (
        accrued(price, gpus, until) * take_bps // BASIS_POINTS
        - accrued(price, gpus, since) * take_bps // BASIS_POINTS
    )


def gross_ask(net: int, *, take_bps: int) -> int:
    """What the book must carry so that the supplier nets `net` micros: net / (1 − take), up."""
    return -(-net * BASIS_POINTS // (BASIS_POINTS - take_bps))


def take_of(price: int, net: int, *, take_bps: int) -> int:
    """The platform's share of a price, in basis points: what it asks, or less where the price lies
    below the ask, so that the supplier nets `net` micros. Raises ValueError where none would do."""
    if price < net:
        raise ValueError(f"a price of {price} can't leave a supplier {net}")
    return min(take_bps, (price - net) * BASIS_POINTS // price)


def with_premium(price: int, bps: int) -> int:
    """What a buyer pays whose price has so many basis points on top of it, micros; rounded up."""
    return -(-price * (BASIS_POINTS + bps) // BASIS_POINTS)


def premium_in(price: int, bps: int) -> int:
    """What of a price that a buyer pays is its premium, micros."""
    return price - before_premium(price, bps)


def before_premium(price: int, bps: int) -> int:
    """The most whole micros that cost no more than `price` with the premium: of a limit, what the
    book may carry; of what `with_premium` made, what it was made of."""
    return price * BASIS_POINTS // (BASIS_POINTS + bps)


def affordable_seconds(price: int, gpus: int, micros: int) -> int:
    """The most whole seconds whose `accrued` cost is at most `micros`."""
    if price * gpus <= 0:
        raise ValueError("a price and a gang are at least 1")
    return ((micros + 1) * SECONDS_PER_HOUR - 1) // (price * gpus)
