"""Refit: the layout UNet plans, the renderer spells.

    glyph map (0..1) -> ink -> regions -> rows -> lines -> matched to the strings in reading order -> Layout

A small layout UNet learns where text stands long before it learns which letter goes where. The strings are
known from the prompt, so the lines are read off its glyph map as places only, and drawn again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np

from vlad.layout.fonts import side_bearings
from vlad.layout.polygons import box_polygon
from vlad.records import Layout, TextLine

INK_THRESHOLD = 0.3  # under a half: a plan drawn in a few steps is dim at its ends
# Regions smaller than this share of the picture are specks of the sampler, not letters.
MINIMUM_REGION_AREA = 0.0012
# Rows of one picture whose heights differ by more than this were told apart wrongly.
UNEVEN_ROWS = 1.8
# How far from its even place, in row pitches, a cut between touching rows is looked for.
CUT_REACH = 0.12

Box = tuple[float, float, float, float]  # left, top, right, bottom


def refit_layout(glyph_map: np.ndarray, strings: Sequence[str]) -> Layout:
    """The layout of `strings` that a generated glyph map (H W, 0..1) asks for.

    Lines are found as rows of ink and given to the strings in reading order. With more rows than strings the
    rows nearest to each other are joined first; with fewer, ink that touches is cut where it is thinnest, and what
    is missing still gets a free band of the picture. No string gives the empty layout.
    """
    if not strings:
        return Layout(())
    rows = _join_nearest(_rows_of(_regions(glyph_map)), len(strings))
    heights = [row[3] - row[1] for row in rows]
    if rows and (len(rows) < len(strings) or max(heights) > UNEVEN_ROWS * min(heights)):
        rows = _cut_rows(glyph_map, _enclosing(rows), len(strings))
    rows = _fill_up(rows, len(strings))
    return Layout(tuple(_line(text, row) for text, row in zip(strings, rows, strict=True)))


def _regions(glyph_map: np.ndarray) -> list[Box]:
    """Boxes (0..1) of the connected regions of ink."""
    height, width = glyph_map.shape
    ink = (glyph_map > INK_THRESHOLD).astype(np.uint8)
    _, _, statistics, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    return [
        (left / width, top / height, (left + w) / width, (top + h) / height)
        for left, top, w, h, area in statistics[1:]  # row 0 is the ground
        if area >= max(2, MINIMUM_REGION_AREA * width * height)
    ]


def _rows_of(regions: list[Box]) -> list[Box]:
    """Regions joined into rows: those whose heights overlap by more than half of the lower one's."""
    rows: list[Box] = []
    for region in sorted(regions, key=lambda box: -(box[3] - box[1])):
        for number, row in enumerate(rows):
            overlap = min(row[3], region[3]) - max(row[1], region[1])
            if overlap > 0.5 * min(row[3] - row[1], region[3] - region[1]):
                rows[number] = _union(row, region)
                break
        else:
            rows.append(region)
    return sorted(rows, key=lambda box: box[1])


def _cut_rows(glyph_map: np.ndarray, block: Box, count: int) -> list[Box]:
    """`count` rows of about one height out of a block of ink whose rows touch, cut where there is least ink."""
    height, width = glyph_map.shape
    top, bottom = round(block[1] * height), round(block[3] * height)
    weight = glyph_map[top:bottom].sum(axis=1)  # ink of each pixel row of the block
    pitch = (bottom - top) / count
    edges = [0]
    for number in range(1, count):
        window = np.arange(round((number - CUT_REACH) * pitch), round((number + CUT_REACH) * pitch) + 1)
        window = window[(window > edges[-1]) & (window < bottom - top)]
        edges.append(int(window[np.argmin(weight[window])]) if window.size else edges[-1] + 1)
    rows = []
    for start, end in pairwise([*edges, bottom - top]):
        ink = glyph_map[top + start : top + end] > INK_THRESHOLD
        ys, xs = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        if ys.size:
            first, last = top + start + int(ys[0]), top + start + int(ys[-1]) + 1
            rows.append((int(xs[0]) / width, first / height, (int(xs[-1]) + 1) / width, last / height))
    return rows


def _enclosing(rows: list[Box]) -> Box:
    """The box around all rows."""
    result = rows[0]
    for row in rows[1:]:
        result = _union(result, row)
    return result


def _join_nearest(rows: list[Box], count: int) -> list[Box]:
    """At most `count` rows, the two with the smallest gap joined until they are."""
    rows = list(rows)
    while len(rows) > count:
        gaps = [below[1] - above[3] for above, below in pairwise(rows)]
        index = int(np.argmin(gaps))
        rows[index : index + 2] = [_union(rows[index], rows[index + 1])]
    return rows


def _fill_up(rows: list[Box], count: int) -> list[Box]:
    """Exactly `count` rows: while too few, the highest free band of the picture takes another one."""
    rows = list(rows)
    while len(rows) < count:
        edges = [0.0, *(edge for row in rows for edge in (row[1], row[3])), 1.0]
        bands = [(edges[i + 1] - edges[i], edges[i]) for i in range(0, len(edges), 2)]
        height, top = max(bands)
        missing = count - len(rows)
        line = min(0.2, 0.6 * height / missing)
        middle = top + height / (missing + 1)
        rows = sorted([*rows, (0.1, middle - line / 2, 0.9, middle + line / 2)], key=lambda box: box[1])
    return rows


def _union(a: Box, b: Box) -> Box:
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def _line(text: str, ink: Box) -> TextLine:
    """The line whose ink, in the canonical font, fills the box: its cells reach past the ink by the side bearings."""
    before, after = side_bearings(text)
    width = (ink[2] - ink[0]) / max(1e-6, 1 - before - after)
    left, right = max(0.0, ink[0] - before * width), min(1.0, ink[2] + after * width)
    return TextLine(text, box_polygon(left, ink[1], right, ink[3]))
