"""A plot of curves as SVG, written by hand: no plotting library is needed for that."""

from collections.abc import Sequence
from html import escape
from typing import Final

_WIDTH, _HEIGHT, _EDGE = 640, 360, 48
_STYLE: Final = 'font-family="sans-serif" font-size="12" fill="none"'
_PLAIN: Final = "#8b97a8"
_BEST: Final = "#0f8a5f"

Curve = tuple[str, Sequence[int], Sequence[float]]
"""A name, and y at each x."""


def lines(curves: Sequence[Curve], *, best: str) -> str:
    """All curves that have points; the one named `best` stands out, and each ends in its name."""
    drawn = [curve for curve in curves if curve[1]]
    across = [x for _, xs, _ in drawn for x in xs]
    up = [y for _, _, ys in drawn for y in ys]
    right, low, high = max(across), min(up), max(up)
    room = (high - low) or 1.0

    def place(x: int, y: float) -> tuple[float, float]:
        return (
            _EDGE + (_WIDTH - 2 * _EDGE) * x / right,
            _HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * (y - low) / room,
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {_STYLE}>',
        f'<path stroke="{_PLAIN}" d="M{_EDGE} {_EDGE} V{_HEIGHT - _EDGE} H{_WIDTH - _EDGE}"/>',
        _label(_EDGE, _HEIGHT - _EDGE + 18, "steps 0"),
        _label(_WIDTH - _EDGE, _HEIGHT - _EDGE + 18, str(right)),
        _label(4, _EDGE - 8, f"{high:.4g}"),
        _label(4, _HEIGHT - _EDGE, f"{low:.4g}"),
    ]
    for name, xs, ys in sorted(drawn, key=lambda curve: curve[0] == best):
        colour, width = (_BEST, 3) if name == best else (_PLAIN, 1)
        points = [place(x, y) for x, y in zip(xs, ys, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline stroke="{colour}" stroke-width="{width}" points="{path}"/>')
        parts += [f'<circle fill="{colour}" r="3" cx="{x:.1f}" cy="{y:.1f}"/>' for x, y in points]
        parts.append(_label(points[-1][0] + 6, points[-1][1] + 4, name))
    return "\n".join([*parts, "</svg>\n"])


def _label(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="#57606a">{escape(text)}</text>'
