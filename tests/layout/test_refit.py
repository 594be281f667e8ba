"""Refit: rendered layouts are read back, touching rows are cut, missing lines get a place."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from vlad.data.options import SyntheticOptions
from vlad.data.signs import render_sign
from vlad.eval.refit_score import KINDS, generated_layout, score_refit
from vlad.layout.fonts import CANONICAL_FONT, PROPORTIONAL_FONT
from vlad.layout.glyph_map import render_glyph_map
from vlad.layout.layout_files import read_layout, write_layout
from vlad.layout.polygons import bounding_box, box_polygon, polygon_iou
from vlad.layout.refit import ink_similarity, refit_layout
from vlad.types import Layout, TextLine


def test_layouts_are_read_off_their_true_glyph_maps() -> None:
    options = SyntheticOptions(line_shares=(0.4, 0.3, 0.3))
    for index in range(150):
        layout = render_sign(options, index).layout
        strings = [line.text for line in layout.lines]
        found = refit_layout(render_glyph_map(layout, 64, 64), strings)
        assert [line.text for line in found.lines] == strings
        for line, true in zip(found.lines, layout.lines, strict=True):
            assert polygon_iou(line.polygon, true.polygon) > 0.8


@pytest.mark.parametrize("count", [2, 3])
def test_touching_rows_are_cut_into_even_ones(count: int) -> None:
    height = 0.9 / count
    strings = ["HELLO", "WORLD", "AGAIN"][:count]
    lines = [
        TextLine(text, box_polygon(0.1, 0.05 + number * height, 0.9, 0.05 + (number + 1) * height))
        for number, text in enumerate(strings)
    ]
    glyph_map = render_glyph_map(Layout(tuple(lines)), 64, 64)
    found = refit_layout(np.maximum(glyph_map, np.roll(glyph_map, 1, axis=0)), strings)
    for line, true in zip(found.lines, lines, strict=True):
        assert polygon_iou(line.polygon, true.polygon) > 0.75


def tilted(text: str, centre: tuple[float, float], width: float, height: float, degrees: float) -> TextLine:
    angle = np.radians(degrees)
    along, down = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    points = [np.array(centre) + x * width / 2 * along + y * height / 2 * down for x, y in corners]
    return TextLine(text, tuple((float(x), float(y)) for x, y in points))


@pytest.mark.parametrize("degrees", [-30, -12, 8, 25, 40])
def test_a_tilted_line_keeps_its_angle(degrees: float) -> None:
    line = tilted("HOUSE", (0.5, 0.5), 0.6, 0.16, degrees)
    found = refit_layout(render_glyph_map(Layout((line,)), 128, 128), ["HOUSE"]).lines[0]
    assert polygon_iou(found.polygon, line.polygon) > 0.8


def test_lines_of_different_angles_are_separated() -> None:
    lines = (
        tilted("SALE", (0.3, 0.2), 0.35, 0.11, -15),
        tilted("TODAY", (0.6, 0.45), 0.45, 0.12, 20),
        tilted("ONLY", (0.4, 0.8), 0.4, 0.12, 0),
    )
    found = refit_layout(render_glyph_map(Layout(lines), 128, 128), [line.text for line in lines])
    assert all(polygon_iou(a.polygon, b.polygon) > 0.75 for a, b in zip(found.lines, lines, strict=True))


def test_lines_side_by_side_are_separated() -> None:
    lines = (
        TextLine("SALE", box_polygon(0.05, 0.3, 0.42, 0.45)),
        TextLine("TODAY", box_polygon(0.55, 0.3, 0.97, 0.45)),
        TextLine("ONLY", box_polygon(0.2, 0.6, 0.6, 0.75)),
    )
    found = refit_layout(render_glyph_map(Layout(lines), 128, 128), ["SALE", "TODAY", "ONLY"])
    assert all(polygon_iou(a.polygon, b.polygon) > 0.85 for a, b in zip(found.lines, lines, strict=True))


def test_strings_are_assigned_where_the_map_spells_them() -> None:
    lines = (
        TextLine("LATER", box_polygon(0.1, 0.6, 0.8, 0.8)),
        TextLine("SOONER", box_polygon(0.1, 0.2, 0.8, 0.4)),
    )
    found = refit_layout(render_glyph_map(Layout(lines), 64, 64), ["LATER", "SOONER"])
    assert all(polygon_iou(a.polygon, b.polygon) > 0.8 for a, b in zip(found.lines, lines, strict=True))


def test_surplus_regions_are_merged_and_missing_lines_get_a_place() -> None:
    lines = (
        TextLine("ONE", box_polygon(0.1, 0.1, 0.5, 0.25)),
        TextLine("TWO", box_polygon(0.1, 0.3, 0.5, 0.45)),
        TextLine("THREE", box_polygon(0.1, 0.75, 0.7, 0.9)),
    )
    glyph_map = render_glyph_map(Layout(lines), 64, 64)
    upper, lower = refit_layout(glyph_map, ["HOUSE", "THREE"]).lines
    assert polygon_iou(upper.polygon, box_polygon(0.1, 0.1, 0.5, 0.45)) > 0.7
    assert polygon_iou(lower.polygon, lines[2].polygon) > 0.8
    assert [line.text for line in refit_layout(glyph_map, list("ABCDE")).lines] == list("ABCDE")


@pytest.mark.parametrize("kind", KINDS)
def test_a_layout_survives_file_glyph_map_and_refit(kind: str, tmp_path: Path) -> None:
    score = score_refit(4, (kind,))
    assert score.matched == 1
    assert score.iou > 0.8
    layout = generated_layout(0, kind)
    write_layout(layout, tmp_path / "layout.json")
    stored = read_layout(tmp_path / "layout.json")
    assert [line.text for line in stored.lines] == [line.text for line in layout.lines]
    assert all(polygon_iou(a.polygon, b.polygon) > 0.99 for a, b in zip(stored.lines, layout.lines, strict=True))


@pytest.mark.parametrize("disturbance", ["blurred and noisy", "wrong letters", "specks"])
def test_lines_are_found_in_disturbed_maps(disturbance: str) -> None:
    assert score_refit(12, disturbance=disturbance).found > 0.85


def test_a_proportional_map_gives_a_layout_in_its_font() -> None:
    text, box = "Illinois WM", (0.2, 0.4, 0.8, 0.5)
    layout = Layout((TextLine(text, box_polygon(*box)),), PROPORTIONAL_FONT)
    glyph_map = render_glyph_map(layout, 128, 128)

    found = refit_layout(glyph_map, [text], PROPORTIONAL_FONT)

    assert found.glyph_font == PROPORTIONAL_FONT
    assert polygon_iou(found.lines[0].polygon, layout.lines[0].polygon) > 0.9
    # Letters of equal width are not where the map has ink.
    assert ink_similarity(found, glyph_map) > ink_similarity(replace(found, glyph_font=CANONICAL_FONT), glyph_map) + 0.2


def test_specks_are_no_lines_and_no_strings_give_an_empty_layout() -> None:
    line = TextLine("HOUSE", box_polygon(0.2, 0.4, 0.8, 0.6))
    glyph_map = render_glyph_map(Layout((line,)), 64, 64)
    glyph_map[2, 2] = 1
    assert polygon_iou(refit_layout(glyph_map, ["HOUSE"]).lines[0].polygon, line.polygon) > 0.8
    assert refit_layout(glyph_map, []) == Layout(())


def test_an_empty_map_gives_every_string_a_place_inside_the_image() -> None:
    found = refit_layout(np.zeros((64, 64), dtype=np.float32), ["ONE", "TWO", "THREE"])
    boxes = [bounding_box(line.polygon) for line in found.lines]
    assert [line.text for line in found.lines] == ["ONE", "TWO", "THREE"]
    assert all(0 <= left < right <= 1 and 0 <= top < bottom <= 1 for left, top, right, bottom in boxes)
    assert all(above[3] <= below[1] for above, below in pairwise(boxes))
