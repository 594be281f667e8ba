"""Glyph maps: strokes stay inside their polygons, and lines that cannot be rendered are masked."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlad.layout.glyph_map import ignore_mask, render_glyph_map, render_line
from vlad.layout.polygons import box_polygon
from vlad.types import Layout, TextLine

BOX = box_polygon(0.1, 0.4, 0.9, 0.6)


def layout_of(text, polygon=BOX, **fields):
    return Layout((TextLine(text, polygon, **fields),))


def rotated_box(degrees, width=0.6, height=0.2):
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    corners = np.array([(-width, -height), (width, -height), (width, height), (-width, height)]) / 2
    return tuple((float(x), float(y)) for x, y in corners @ turn + 0.5)


def pixels_outside(glyph_map, polygon):
    """The largest distance in pixels of an inked pixel's centre outside a clockwise convex polygon."""
    height, width = glyph_map.shape
    rows, columns = np.nonzero(glyph_map)
    corners = np.array(polygon) * (width, height)
    edges = np.roll(corners, -1, axis=0) - corners
    outwards = np.stack([edges[:, 1], -edges[:, 0]], axis=1) / np.linalg.norm(edges, axis=1, keepdims=True)
    centres = np.stack([columns, rows], axis=1)[:, None] + 0.5
    return ((centres - corners) * outwards).sum(axis=-1).max()


@pytest.mark.parametrize("degrees", [0, 15, 45, 90, 180, 250])
def test_a_rotated_line_is_rendered_inside_its_polygon(degrees):
    polygon = rotated_box(degrees)
    glyph_map = render_glyph_map(layout_of("HOUSE", polygon), 256, 256)
    assert glyph_map.dtype == np.float32
    assert glyph_map.max() == 1
    assert pixels_outside(glyph_map, polygon) < 0.6
    # As much ink as upright: only the place changed.
    assert glyph_map.sum() == pytest.approx(
        render_glyph_map(layout_of("HOUSE", rotated_box(0)), 256, 256).sum(), rel=0.03
    )


def test_a_line_turned_by_180_degrees_is_the_turned_map():
    upright = render_glyph_map(layout_of("HOUSE", rotated_box(0)), 128, 128)
    turned = render_glyph_map(layout_of("HOUSE", rotated_box(180)), 128, 128)
    assert np.abs(turned - upright[::-1, ::-1]).mean() < 0.01


def test_the_ink_fills_the_height_of_the_polygon():
    rows = np.flatnonzero(render_glyph_map(layout_of("HOUSE"), 200, 200).max(axis=1) > 0.5)
    assert abs(rows[0] - 80) <= 1
    assert abs(rows[-1] - 119) <= 1


def test_thin_strokes_of_small_images_keep_their_weight():
    small, large = (render_glyph_map(layout_of("HOUSE"), pixels, pixels).mean() for pixels in (32, 256))
    assert small == pytest.approx(large, rel=0.1)


def test_overlapping_lines_combine_as_their_maximum():
    coverage = np.zeros((64, 64), dtype=np.uint8)
    for _ in range(2):
        render_line(coverage, "HOUSE", BOX)
    assert np.array_equal(coverage, np.round(render_glyph_map(layout_of("HOUSE"), 64, 64) * 255))


@pytest.mark.parametrize("layout", [layout_of("HOUSE", valid=False), layout_of("中国"), layout_of("H中")])
def test_lines_that_are_not_shown_are_masked(layout):
    assert render_glyph_map(layout, 50, 50).max() == 0
    mask = ignore_mask(layout, 50, 50)
    assert mask[20:30, 5:45].all()
    assert mask.sum() == 10 * 40


def test_lines_that_are_shown_are_not_masked():
    assert not ignore_mask(layout_of("HOUSE"), 50, 50).any()


def test_the_mask_of_a_line_outside_the_image_is_empty():
    for box in ((-0.5, 0.1, -0.1, 0.9), (0.1, -0.6, 0.9, -0.2), (1.1, 0.1, 1.5, 0.9)):
        assert not ignore_mask(layout_of("HOUSE", box_polygon(*box), valid=False), 50, 50).any()


def test_text_past_the_edge_of_the_image_is_cut_off():
    whole = render_glyph_map(layout_of("HOUSE", box_polygon(0.5, 0.4, 1.5, 0.6)), 64, 64)
    assert 0 < whole[:, 32:].max() <= 1
    assert whole[:, :31].max() == 0


@pytest.mark.parametrize("space", [" ", "\t", "\x85", "\u2028", "\u2029", "\u3000", "\x1c"])
def test_every_kind_of_space_is_an_empty_cell(space):
    box = box_polygon(0.1, 0.3, 0.9, 0.7)
    expected = render_glyph_map(layout_of("A B", box), 64, 64)
    assert np.array_equal(render_glyph_map(layout_of(f"A{space}B", box), 64, 64), expected)


coordinate = st.one_of(st.sampled_from([0.0, 0.5, 1.0, -1.0, 1e-9, 1e12]), st.floats(-0.5, 1.5))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(coordinate, coordinate), min_size=4, max_size=8),
    st.text(max_size=6),
)
def test_any_polygon_and_any_text_can_be_rendered(points, text):
    layout = layout_of(text, tuple(points))
    glyph_map = render_glyph_map(layout, 48, 32)
    assert glyph_map.shape == (32, 48)
    assert np.isfinite(glyph_map).all()
    assert glyph_map.min() >= 0
    assert glyph_map.max() <= 1
    assert ignore_mask(layout, 48, 32).shape == (32, 48)


def arc(start: float, end: float, inner: float, outer: float, points: int = 5) -> tuple[tuple[float, float], ...]:
    """A line bent around (0.5, 0.9): angles in degrees from the right, radii of its lower and upper edge."""
    angles = np.radians(np.linspace(start, end, points))
    upper = [(0.5 + outer * np.cos(a), 0.9 - outer * np.sin(a)) for a in angles]
    lower = [(0.5 + inner * np.cos(a), 0.9 - inner * np.sin(a)) for a in angles[::-1]]
    return tuple((float(x), float(y)) for x, y in (*upper, *lower))


def test_a_polygon_of_more_points_bends_its_line():
    polygon = arc(150, 30, 0.5, 0.7)
    glyph_map = render_glyph_map(layout_of("HHHHHHHH", polygon), 256, 256)
    ys, xs = np.nonzero(glyph_map > 0.5)
    radius = np.hypot(xs / 256 - 0.5, ys / 256 - 0.9)
    # All ink lies on the ring, and fills it from edge to edge.
    assert 0.48 < radius.min() < 0.52
    assert 0.68 < radius.max() < 0.72
    angle = np.degrees(np.arctan2(0.9 - ys / 256, xs / 256 - 0.5))
    assert angle.min() < 36
    assert angle.max() > 144


def test_a_bent_line_has_no_seams():
    # The horizontal strokes of E join no letters, but no strip may cut one: as many pieces as letters.
    bent = (render_glyph_map(layout_of("IHH", arc(125, 55, 0.45, 0.7, 9)), 256, 256) > 0.5).astype(np.uint8)
    pieces, _, statistics, _ = cv2.connectedComponentsWithStats(bent)
    assert pieces - 1 == 3
    assert statistics[1:, cv2.CC_STAT_AREA].min() > 100


def test_straight_polygons_of_more_points_render_like_quads():
    box = ((0.1, 0.4), (0.5, 0.4), (0.9, 0.4), (0.9, 0.6), (0.5, 0.6), (0.1, 0.6))
    bent, straight = render_glyph_map(layout_of("HOUSE", box), 256, 256), render_glyph_map(layout_of("HOUSE"), 256, 256)
    assert np.abs(bent - straight).mean() < 0.02
