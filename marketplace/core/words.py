"""Figures in words, as pages, sockets and the story say them."""


def duration(seconds: float) -> str:
    """3,725 s as "1 h 2 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest and minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


def energy(kwh: float) -> str:
    """Kilowatt-hours in the unit that reads best: "1.25 kWh", "3.1 Wh", "0.05 Wh"."""
    if kwh >= 0.1 or not kwh:
        return f"{kwh:,.2f} kWh"
    return f"{kwh * 1000:.1f} Wh" if kwh >= 0.001 else f"{kwh * 1000:.2g} Wh"


def carbon(grams: float) -> str:
    """Grams of CO2 in the unit that reads best: "1.2 kg CO₂", "31 g CO₂", "0.02 g CO₂"."""
    if grams >= 1000:
        return f"{grams / 1000:,.1f} kg CO₂"
    return f"{grams:.0f} g CO₂" if grams >= 10 or not grams else f"{grams:.2g} g CO₂"
