"""Typesetting: natural letters, a least height, no line over another; what is well set stays."""

from __future__ import annotations

from itertools import combinations

import pytest

from vlad.layout.fonts import PROPORTIONAL_FONT, TYPEFACE_FONT, line_font, line_mask
from vlad.layout.glyph_map import render_glyph_map
from vlad.layout.polygons import bounding_box, box_polygon
from vlad.layout.refit import refit_layout
from vlad.layout.typesetting import LEAST_HEIGHT, MAX_STRETCH, typeset
from vlad.types import Layout, TextLine


def layout(*lines: tuple[str, tuple[float, float, float, float]]) -> Layout:
    return Layout(tuple(TextLine(text, box_polygon(*box)) for text, box in lines), PROPORTIONAL_FONT)


def stretch(line: TextLine) -> float:
    left, top, right, bottom = bounding_box(line.polygon)
    mask = line_mask(line.text, PROPORTIONAL_FONT)
    return (right - left) / (bottom - top) / (mask.width / mask.height)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("HILL", (0.05, 0.3, 0.95, 0.42)),  # flat
        ("SUPPLY'S", (0.3, 0.1, 0.6, 0.6)),  # tall
        ("73.50", (0.4, 0.5, 0.43, 0.51)),  # tiny
        ("A LONG LINE OF 24", (0.4, 0.97, 0.43, 1.0)),  # tiny, in a corner
        ("I", (0.0, 0.0, 1.0, 1.0)),
    ],
)
def test_a_line_gets_letters_of_natural_width_and_a_least_height(text, box):
    (line,) = typeset(layout((text, box)), 128, 128).lines
    left, top, right, bottom = bounding_box(line.polygon)
    assert 0 < left < right < 1 and 0 < top < bottom < 1
    assert 1 / MAX_STRETCH - 1e-6 <= stretch(line) <= MAX_STRETCH + 1e-6
    assert bottom - top >= LEAST_HEIGHT - 1e-9


def test_lines_that_run_into_each_other_are_parted_in_their_order():
    lines = typeset(
        layout(
            ("Pacific", (0.1, 0.1, 0.9, 0.4)), ("ROOM 465", (0.2, 0.3, 0.8, 0.42)), ("$29.70", (0.2, 0.4, 0.9, 0.55))
        ),
        128,
        128,
    ).lines
    boxes = [bounding_box(line.polygon) for line in lines]
    for upper, lower in combinations(boxes, 2):
        assert upper[3] <= lower[1] + 1e-6
    assert all(bottom - top >= LEAST_HEIGHT - 1e-9 for _, top, _, bottom in boxes)


def test_what_is_well_set_stays_and_tilted_lines_too():
    well = layout(("HOUSE", (0.125, 0.25, 0.875, 0.4375)), ("open", (0.125, 0.625, 0.5, 0.75)))
    for before, after in zip(well.lines, typeset(well, 128, 128).lines, strict=True):
        assert bounding_box(after.polygon) == pytest.approx(bounding_box(before.polygon))
    tilted = Layout((TextLine("HOUSE", ((0.1, 0.2), (0.9, 0.3), (0.9, 0.34), (0.1, 0.24))),), PROPORTIONAL_FONT)
    assert typeset(tilted, 128, 128) == tilted


def test_a_refitted_line_in_proportional_type_is_typeset():
    flat = layout(("HILL", (0.05, 0.3, 0.95, 0.42)))
    (line,) = refit_layout(render_glyph_map(flat, 128, 128), ["HILL"], PROPORTIONAL_FONT).lines
    assert stretch(line) == pytest.approx(MAX_STRETCH)


def test_a_refitted_line_takes_the_typeface_that_the_prompt_asks_for():
    wide = layout(("MARKET", (0.1, 0.3, 0.9, 0.45)))
    glyph_map = render_glyph_map(wide, 128, 128)
    (plain,) = refit_layout(glyph_map, ["MARKET"], TYPEFACE_FONT).lines
    (narrow,) = refit_layout(glyph_map, ["MARKET"], TYPEFACE_FONT, ["oswald"]).lines
    assert (plain.font, narrow.font) == (None, "oswald")
    assert line_font(narrow, TYPEFACE_FONT) == "oswald" and line_font(narrow, PROPORTIONAL_FONT) == PROPORTIONAL_FONT
    left, top, right, bottom = bounding_box(narrow.polygon)
    mask = line_mask("MARKET", "oswald")
    assert (right - left) / (bottom - top) <= MAX_STRETCH * mask.width / mask.height + 1e-6
