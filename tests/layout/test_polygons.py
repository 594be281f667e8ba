"""Polygons: areas, overlaps, the quad of a polygon, perspective."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlad.layout.polygons import (
    bounding_box,
    box_polygon,
    perspective_coefficients,
    polygon_area,
    polygon_iou,
    quad_of,
)

SLANTED = ((0.1, 0.2), (0.7, 0.1), (0.8, 0.4), (0.15, 0.5))


def test_area_and_bounding_box():
    assert polygon_area(box_polygon(0.1, 0.2, 0.5, 0.7)) == pytest.approx(0.2)
    assert polygon_area(tuple(reversed(SLANTED))) == pytest.approx(polygon_area(SLANTED))
    assert bounding_box(SLANTED) == (0.1, 0.1, 0.8, 0.5)


def test_iou_of_polygons():
    box = box_polygon(0.0, 0.0, 0.4, 0.4)
    assert polygon_iou(box, box) == pytest.approx(1)
    assert polygon_iou(box, tuple(reversed(box))) == pytest.approx(1)
    assert polygon_iou(box, box_polygon(0.2, 0.0, 0.6, 0.4)) == pytest.approx(1 / 3)
    assert polygon_iou(box, box_polygon(0.5, 0.5, 0.6, 0.6)) == 0
    triangle = ((0.0, 0.0), (0.4, 0.0), (0.0, 0.4))
    assert polygon_iou(box, triangle) == pytest.approx(0.5)
    crossed = ((0.0, 0.0), (0.4, 0.4), (0.4, 0.0), (0.0, 0.4))  # two triangles of a quarter each
    assert polygon_iou(box, crossed) == pytest.approx(0.5)
    point = box_polygon(0.5, 0.5, 0.5, 0.5)
    assert polygon_iou(point, point) == 0


def test_quad_of_curved_text_spans_the_ends_of_its_edges():
    upper = [(0.1, 0.3), (0.3, 0.2), (0.6, 0.2), (0.9, 0.3)]
    lower = [(0.9, 0.5), (0.6, 0.4), (0.3, 0.4), (0.1, 0.5)]
    assert quad_of((*upper, *lower)) == ((0.1, 0.3), (0.9, 0.3), (0.9, 0.5), (0.1, 0.5))


def test_quad_of_a_convex_quad_is_itself():
    assert quad_of(SLANTED) == SLANTED
    thin = box_polygon(0.0, 0.5, 1.0, 0.505)
    assert quad_of(thin) == thin


@pytest.mark.parametrize(
    "polygon",
    [
        ((0.1, 0.1), (0.5, 0.1), (0.9, 0.1), (0.1, 0.4)),  # three on a line
        ((0.1, 0.1), (0.9, 0.1), (0.1, 0.4), (0.9, 0.4)),  # edges that cross
        ((0.1, 0.1), (0.9, 0.1), (0.9, 0.4), (0.9, 0.4)),  # a corner twice
    ],
)
def test_a_quad_that_no_perspective_fits_becomes_its_bounding_box(polygon):
    assert quad_of(polygon) == box_polygon(0.1, 0.1, 0.9, 0.4)


@given(st.lists(st.floats(-0.02, 0.02), min_size=8, max_size=8))
def test_perspective_maps_the_corners_of_the_quad_to_those_of_the_rectangle(shifts):
    quad = tuple((x + dx, y + dy) for (x, y), dx, dy in zip(SLANTED, shifts[::2], shifts[1::2], strict=True))
    a, b, c, d, e, f, g, h = perspective_coefficients(quad, 200, 50)
    for (x, y), corner in zip(quad, ((0, 0), (200, 0), (200, 50), (0, 50)), strict=True):
        depth = g * x + h * y + 1
        assert np.allclose(((a * x + b * y + c) / depth, (d * x + e * y + f) / depth), corner, atol=1e-6)
