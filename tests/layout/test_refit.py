"""Refit: what is drawn from a layout is read back; what touches is cut; what is missing gets a place."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from vlad.data.synthetic import SyntheticOptions, render_sign
from vlad.layout.glyphmap import draw_glyph_map
from vlad.layout.polygons import bounding_box, box_iou, box_polygon
from vlad.layout.refit import refit_layout
from vlad.records import Layout, TextLine


def test_true_glyph_maps_give_their_layouts_back() -> None:
    options = SyntheticOptions(line_shares=(0.4, 0.3, 0.3))
    for index in range(150):
        layout = render_sign(options, index).layout
        strings = [line.text for line in layout.lines]
        found = refit_layout(draw_glyph_map(layout, 64, 64), strings)
        assert [line.text for line in found.lines] == strings
        for line, true in zip(found.lines, layout.lines, strict=True):
            assert box_iou(line.polygon, true.polygon) > 0.8


@pytest.mark.parametrize("count", [2, 3])
def test_rows_that_touch_are_cut_into_even_ones(count: int) -> None:
    height = 0.9 / count
    strings = ["HELLO", "WORLD", "AGAIN"][:count]
    lines = [
        TextLine(text, box_polygon(0.1, 0.05 + number * height, 0.9, 0.05 + (number + 1) * height))
        for number, text in enumerate(strings)
    ]
    glyph_map = draw_glyph_map(Layout(tuple(lines)), 64, 64)
    found = refit_layout(np.maximum(glyph_map, np.roll(glyph_map, 1, axis=0)), strings)
    for line, true in zip(found.lines, lines, strict=True):
        assert box_iou(line.polygon, true.polygon) > 0.75


def test_specks_make_no_line_and_no_string_no_layout() -> None:
    line = TextLine("HOUSE", box_polygon(0.2, 0.4, 0.8, 0.6))
    glyph_map = draw_glyph_map(Layout((line,)), 64, 64)
    glyph_map[2, 2] = 1
    assert box_iou(refit_layout(glyph_map, ["HOUSE"]).lines[0].polygon, line.polygon) > 0.8
    assert refit_layout(glyph_map, []) == Layout(())


def test_an_empty_map_still_gives_every_string_a_place_inside_the_picture() -> None:
    found = refit_layout(np.zeros((64, 64), dtype=np.float32), ["ONE", "TWO", "THREE"])
    boxes = [bounding_box(line.polygon) for line in found.lines]
    assert [line.text for line in found.lines] == ["ONE", "TWO", "THREE"]
    assert all(0 <= left < right <= 1 and 0 <= top < bottom <= 1 for left, top, right, bottom in boxes)
    assert all(above[3] <= below[1] for above, below in pairwise(boxes))
