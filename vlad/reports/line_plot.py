"""Line plots of metrics over the steps, as coordinates that a page's template draws as SVG.

Not by matplotlib: it takes longer over the plots of a short run than the run itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from vlad.reports.curves import Curve, thin_out

LEFT, RIGHT, TOP, BOTTOM = 48, 310, 26, 176  # of the axes, as the template draws them
POINTS = 200  # of a curve, at most
LOG_RANGE = 30  # positive values that span a larger factor are shown on a logarithmic scale
Tick = tuple[float, str]  # its coordinate and its label


@dataclass(frozen=True)
class Line:
    """A curve: `parts` are its stretches of finite values, each as SVG's points; `dots` are stretches of one point."""

    label: str
    colour: str
    parts: list[str]
    dots: list[tuple[float, float]]


@dataclass(frozen=True)
class LinePlot:
    """Curves of one quantity with the ticks of both axes, in the template's coordinates."""

    title: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def line_plot(title: str, curves: Mapping[str, Curve]) -> LinePlot:
    """The plot of one or more curves; without a finite value it has neither lines nor ticks."""
    shown = {name: thin_out(curve, POINTS) for name, curve in sorted(curves.items())}
    points = [point for curve in shown.values() for point in curve if math.isfinite(point[1])]
    if not points:
        return LinePlot(title, [], [], [])
    steps, values = zip(*points, strict=True)
    is_log = min(values) > 0 and max(values) > LOG_RANGE * min(values)
    scaled = math.log10 if is_log else float

    def x(step: float) -> float:
        return _placed(step, min(steps), max(steps), LEFT, RIGHT)

    def y(value: float) -> float:
        return _placed(scaled(value), scaled(min(values)), scaled(max(values)), BOTTOM, TOP)

    lines = []
    for number, (name, curve) in enumerate(shown.items()):
        stretches = [
            [(x(step), y(value)) for step, value in stretch]
            for is_finite, stretch in itertools.groupby(curve, key=lambda point: math.isfinite(point[1]))
            if is_finite
        ]
        parts = [" ".join(f"{a:.1f},{b:.1f}" for a, b in stretch) for stretch in stretches if len(stretch) > 1]
        dots = [stretch[0] for stretch in stretches if len(stretch) == 1]
        lines.append(Line(name, _colour(number, len(shown)), parts, dots))
    y_ticks = _decades(min(values), max(values)) if is_log else _round_values(min(values), max(values))
    return LinePlot(
        title,
        lines,
        [(x(step), f"{step:,.0f}") for step in _round_values(min(steps), max(steps)) if step == int(step)],
        [(y(value), f"{value:.4g}") for value in y_ticks],
    )


def _placed(value: float, low: float, high: float, start: float, end: float) -> float:
    """The coordinate of a value; the middle where all values are equal."""
    return start + (end - start) * ((value - low) / (high - low) if high > low else 0.5)


def _round_values(low: float, high: float) -> list[float]:
    """Two to six multiples of 1, 2 or 5 times a power of ten between two values."""
    if low == high:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= (high - low) / 5)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """The powers of ten between two values: every n-th where they are many, 2 and 5 times these where they are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = range(first, last + 1, math.ceil((last - first + 1) / 7))
    factors = (1, 2, 5) if math.log10(high / low) < 2 else (1,)
    return [value for power in powers for factor in factors if low <= (value := factor * 10.0**power) <= high]


def _colour(number: int, count: int) -> str:
    """Of one curve blue; several curves are levels of one quantity, from dark to light."""
    share = number / max(1, count - 1)
    return "#1f77b4" if count == 1 else f"hsl({270 - 210 * share:.0f} 65% {25 + 40 * share:.0f}%)"
