"""How figures are written on pages: money, sizes, durations."""

import json
from datetime import datetime

from django import template

from marketplace.core import words
from marketplace.core.hardware import Tier, Trust
from marketplace.core.money import format_amount

register = template.Library()


@register.filter
def money(micros: int | None, places: int = 2) -> str:
    """Micros as "$1.25"; "–" for nothing known."""
    if micros is None:
        return "–"
    sign = "-" if micros < 0 else ""
    return f"{sign}${format_amount(abs(micros), places=places)}"


@register.filter
def price(micros: int | str | None, places: int = 2) -> str:
    """Micros per GPU-hour: "$1.87", and below ten cents "$0.0412"; "–" for nothing known."""
    if not isinstance(micros, int):
        return "–"
    return f"${micros / 1e6:.{places if micros >= 100_000 else 4}f}"


@register.filter
def cell(name: str) -> str:
    """The public name of a cell, "h100-sxm/eu-west/1/0", in words."""
    gpu_class, region, trust, tier = name.rsplit("/", 3)
    known = Trust(int(trust)).name, Tier(int(tier)).name
    return ", ".join((gpu_class, region, *(each.lower() for each in known)))


@register.filter
def cents(micros: int | None) -> str:
    """Micros rounded to whole cents, for totals where the sixth place says nothing."""
    if micros is None:
        return "–"
    if 0 < abs(micros) < 10_000:
        return money(micros)
    return money(round(micros / 10_000) * 10_000)


@register.filter
def duration(seconds: float | None) -> str:
    """3,725 s as "1 h 2 min"."""
    if seconds is None:
        return "–"
    return words.duration(seconds)


@register.filter
def since(moment: datetime | None, now: datetime) -> str:
    """How long ago, or in how long."""
    if moment is None:
        return "never"
    gap = (now - moment).total_seconds()
    return f"{duration(gap)} ago" if gap >= 0 else f"in {duration(-gap)}"


@register.filter
def size(count: int | None) -> str:
    """Bytes in the unit that reads best."""
    if count is None:
        return "–"
    amount, units = float(count), ("B", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if amount < 1024 or unit == units[-1]:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError("unreachable")


@register.filter
def count(number: int | None) -> str:
    """134,515,008 as "135 M"."""
    if number is None:
        return "–"
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


@register.filter
def signed_percent(share: float | None) -> str:
    """-0.125 as "−12.5 %"."""
    return "–" if share is None else f"{share * 100:+.1f} %".replace("-", "−")


@register.filter
def as_json(value: object) -> str:
    """As it would be typed into a file."""
    return json.dumps(value, ensure_ascii=False)


@register.filter
def percent(share: float | None) -> str:
    """0.25 as "25 %"."""
    return "–" if share is None else f"{share * 100:.0f} %"


@register.filter
def basis_points(share: int) -> str:
    """1000 as "10 %"."""
    return f"{share / 100:g} %"


@register.filter
def fine_percent(share: float | None) -> str:
    """0.00412 as "0.41 %"."""
    return "–" if share is None else f"{share * 100:.2f} %"


@register.filter
def energy(kwh: float | None) -> str:
    """Kilowatt-hours in the unit that reads best."""
    return "–" if kwh is None else words.energy(kwh)


@register.filter
def carbon(grams: float | None) -> str:
    """Grams of CO2 in the unit that reads best."""
    return "–" if grams is None else words.carbon(grams)
