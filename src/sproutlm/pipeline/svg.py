"""Line plots as SVG text, for a page that needs nothing beside itself: no library, no script, no font of its own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 10, 10, 34  # room for the axes' figures
MOST_POINTS = 600  # of one line; more cannot be told apart

# Okabe and Ito's colours, which people with colour blindness can tell apart (yellow left out: too pale on white).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
DASHES = ("", "6 3", "2 3", "8 3 2 3")


def text(value: Any) -> str:
    """Anything as text inside the page: escaped, without characters that HTML cannot hold."""
    clean = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", str(value))
    return escape(clean.encode("utf-8", "replace").decode("utf-8"))


@dataclass(frozen=True)
class Line:
    """One line of a plot: ``points`` are (x, y) in the order of x; a y that is not finite is left out and counted."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: str
    dash: str = ""


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most ``most`` points: of each stretch its least and its greatest, so that no spike is lost; both ends stay."""
    if len(points) <= most:
        return list(points)
    inner, stretches = points[1:-1], (most - 2) // 2
    kept = [points[0]]
    for i in range(stretches):
        part = inner[i * len(inner) // stretches : (i + 1) * len(inner) // stretches]
        low, high = min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])
        kept += sorted({low, high})
    return [*kept, points[-1]]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0:
        return [low]
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten inside; with fewer than two of them, 1, 2 and 5 times each."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    tens = [10.0**n for n in decades if low <= 10.0**n <= high]
    if len(tens) > 6:
        return tens[:: -(-len(tens) // 6)]
    return tens if len(tens) > 1 else [f * 10.0**n for n in decades for f in (1, 2, 5) if low <= f * 10.0**n <= high]


def figure(value: float) -> str:
    """A short figure for an axis: 0.0021, 1.5, 20k, 3M."""
    if value == 0:
        return "0"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.3g}"


def _scale(low: float, high: float, start: float, end: float, log: bool) -> Callable[[float], float]:
    """From a value to its place between ``start`` and ``end``, in pixels."""
    if log:
        low, high = math.log10(low), math.log10(high)
    span = high - low or 1.0
    return lambda value: start + ((math.log10(value) if log else value) - low) / span * (end - start)


def plot(title: str, x_name: str, lines: Sequence[Line], *, log: bool = False) -> str:
    """An ``<svg>`` element; an empty string where there is nothing to draw. ``log``: y on a logarithmic axis.

    On it, values of 0 and below are left out like those that are not finite; the plot says how many.
    """
    drawn, left_out = [], 0
    for line in lines:
        good = [(x, y) for x, y in line.points if math.isfinite(y) and math.isfinite(x) and (y > 0 or not log)]
        left_out += len(line.points) - len(good)
        if good:
            drawn.append((line, thinned(good)))
    if not drawn:
        return ""
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points]
    low, high = min(ys), max(ys)
    if low == high:  # a constant: give it a middle to lie in
        low, high = (low / 2, high * 2) if log else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)
    x_of = _scale(min(xs), max(xs), LEFT, WIDTH - RIGHT, False)
    y_of = _scale(low, high, HEIGHT - BOTTOM, TOP, log)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}" xmlns="http://www.w3.org/2000/svg">'
    ]
    for value in log_ticks(low, high) if log else ticks(low, high):
        at = f"{y_of(value):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at}" dy="4" text-anchor="end">{figure(value)}</text>')
    for value in ticks(min(xs), max(xs)):
        parts.append(
            f'<text x="{x_of(value):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{figure(value)}</text>'
        )
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{text(x_name)}</text>')
    for line, points in drawn:
        dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
        name = f"<title>{text(line.label)}</title>"
        if len(points) == 1:
            x, y = points[0]
            parts.append(f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3" fill="{line.colour}">{name}</circle>')
            continue
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{line.colour}"{dash}>{name}</polyline>')
    if left_out:
        parts.append(f'<text class="out" x="{WIDTH - RIGHT}" y="{TOP + 8}" text-anchor="end">∅ {left_out:,}</text>')
    return "".join([*parts, "</svg>"])
