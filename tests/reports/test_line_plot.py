"""Line plots: every point where its axes say, ticks at round values, holes where values are not finite."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlad.reports.line_plot import BOTTOM, LEFT, RIGHT, TOP, line_plot


def test_points_lie_where_the_axes_say() -> None:
    plot = line_plot("loss", {"loss": [(0, 2.0), (50, 1.0), (100, 0.0)]})
    (line,) = plot.lines
    assert line.parts == [f"{LEFT}.0,{TOP}.0 {(LEFT + RIGHT) / 2:.1f},{(TOP + BOTTOM) / 2:.1f} {RIGHT}.0,{BOTTOM}.0"]
    assert {label: at for at, label in plot.x_ticks} == pytest.approx(
        {f"{step}": LEFT + (RIGHT - LEFT) * step / 100 for step in range(0, 101, 20)}
    )
    assert [label for _, label in plot.y_ticks] == ["0", "0.5", "1", "1.5", "2"]


def test_values_of_several_decades_are_on_a_logarithmic_scale() -> None:
    plot = line_plot("loss", {"loss": [(0, 100.0), (1, 10.0), (2, 1.0)]})
    assert plot.lines[0].parts[0].split()[1].endswith(f",{(TOP + BOTTOM) / 2:.1f}")
    assert [label for _, label in plot.y_ticks] == ["1", "10", "100"]


def test_a_hole_divides_a_curve_and_a_single_point_is_a_dot() -> None:
    curve = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 3.0), (4, math.inf), (5, 1.0), (6, 1.0)]
    (line,) = line_plot("loss", {"loss": curve}).lines
    assert (len(line.parts), len(line.dots)) == (2, 1)
    assert line_plot("loss", {"loss": [(0, math.nan)]}).lines == []


values = st.floats(-1e6, 1e6, allow_subnormal=False) | st.just(math.nan)
curves = st.lists(st.tuples(st.integers(0, 10**6), values), min_size=1, max_size=50, unique_by=lambda point: point[0])


@given(st.dictionaries(st.sampled_from("abc"), curves.map(sorted), min_size=1))
def test_nothing_lies_outside_the_axes(shown: dict[str, list[tuple[int, float]]]) -> None:
    plot = line_plot("loss", shown)
    points = [tuple(map(float, pair.split(","))) for line in plot.lines for part in line.parts for pair in part.split()]
    points += [dot for line in plot.lines for dot in line.dots]
    assert all(LEFT - 0.1 <= x <= RIGHT + 0.1 and TOP - 0.1 <= y <= BOTTOM + 0.1 for x, y in points)
    assert all(LEFT - 0.1 <= x <= RIGHT + 0.1 for x, _ in plot.x_ticks)
    assert all(TOP - 0.1 <= y <= BOTTOM + 0.1 for y, _ in plot.y_ticks)
    assert (len(plot.x_ticks) <= 7 and len(plot.y_ticks) <= 7) or not points
