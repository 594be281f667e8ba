"""Refit: the layout UNet plans, the renderer spells.

    glyph map (0..1) -> ink -> regions -> lines, read in several ways -> matched to the strings -> drawn again
                                                  the way whose drawing is most like the map -> Layout

A small layout UNet learns where text stands long before it learns which letter goes where. The strings are
known from the prompt, so the lines are read off its glyph map as places only, and drawn again. The ways to read:

    rows      regions at one height are a line; touching rows are cut where there is least ink
    columns   the same, but a row is cut at its widest gaps while there are too few lines
    chains    regions linked to their nearest neighbours, cut at the longest links: every line at its own angle

Rows and columns are looked for upright and at the angles of the chains. Upright rows are taken unless another way is
clearly more like the map: a plan of a young layout UNet holds no letters that could tell ways apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise, permutations

import cv2
import numpy as np

from vlad.layout.fonts import line_mask, side_bearings
from vlad.layout.glyph_map import render_glyph_map
from vlad.layout.line_detection import detect_tilted_lines
from vlad.layout.polygons import box_polygon, polygon_area
from vlad.layout.reading_order import reading_order
from vlad.types import Layout, Polygon, TextLine

INK_THRESHOLD = 0.3  # under a half: a plan drawn in a few steps is dim at its ends
# Regions smaller than this share of the image are specks of the sampler, not letters ...
MINIMUM_REGION_AREA = 0.0012
# ... unless the letters are as small: then those under this share of a typical region are.
SPECK_SHARE = 0.2
# Rows of one image whose heights differ by more than this were told apart wrongly.
UNEVEN_ROWS = 1.8
# How far from its even place, in row pitches, a cut between touching rows is looked for.
CUT_REACH = 0.12
# How like the map another way of reading must be, and how much more so than upright rows. Maps that no way reads well,
# those of a young layout UNet, stay under the first.
LEAST_LIKENESS = 0.42
LEAST_GAIN = 0.08
# How much more like the map another order of the strings must be than the reading order, a line.
LEAST_ORDER_GAIN = 0.2
# A line's ink may seem to leave the image by this share of it: a pixel's corner, the slack of a turned map.
OUTSIDE = 0.02
LEAST_LINE_AREA = 1e-4
MOST_BLOCK_DEGREES = 45
MOST_ORDERED = 6  # lines whose orders are all tried

Box = tuple[float, float, float, float]  # left, top, right, bottom


def refit_layout(glyph_map: np.ndarray, strings: Sequence[str]) -> Layout:
    """The layout of `strings` that a generated glyph map (H W, 0..1) asks for.

    With more lines than strings the nearest are joined first; with fewer, ink that touches is cut where it is
    thinnest, and what is missing still gets a free band of the image. Strings go to the lines in reading order,
    unless the map itself clearly spells them in another. No string gives the empty layout.
    """
    if not strings:
        return Layout(())
    rows = [box_polygon(*row) for row in _upright_rows(glyph_map, len(strings))]
    best = _layout(glyph_map, strings, rows)
    if not (glyph_map > INK_THRESHOLD).any():
        return best
    most = max(LEAST_LIKENESS, ink_similarity(best, glyph_map) + LEAST_GAIN)
    for quads in _other_ways(glyph_map, len(strings)):
        layout = _layout(glyph_map, strings, quads)
        found = ink_similarity(layout, glyph_map)
        if found > most:
            best, most = layout, found
    return best


def ink_similarity(layout: Layout, glyph_map: np.ndarray) -> float:
    """How much of the ink of a layout and of a map (H W, 0..1) is the same, both a little blurred: 0 to 1."""
    height, width = glyph_map.shape
    sigma = max(0.6, max(height, width) / 128)
    drawn, given = (
        cv2.GaussianBlur(np.clip(ink, 0, 1).astype(np.float32), (0, 0), sigma)
        for ink in (render_glyph_map(layout, width, height), glyph_map)
    )
    return float(np.minimum(drawn, given).sum() / max(1e-6, np.maximum(drawn, given).sum()))


def _other_ways(glyph_map: np.ndarray, count: int) -> list[list[Polygon]]:
    """The inked quads of `count` lines, read in every way but upright rows; ways that find another number drop out."""
    chains = detect_tilted_lines(_ink(glyph_map), count)
    ways = [chains] if chains is not None else []
    ways.append([box_polygon(*row) for row in _columns(glyph_map, count)])
    for degrees in _angles(chains or [], _block_angle(glyph_map)):
        turned, back = _turned(glyph_map, degrees)
        for read in (_upright_rows, _columns):
            ways += [[_placed(row, turned, back, glyph_map) for row in read(turned, count)]]
    return [quads for quads in ways if len(quads) == count and all(map(_is_place, quads))]


def _is_place(quad: Polygon) -> bool:
    """Whether a line can stand there: inside the image but for a little, and not flat."""
    inside = all(-OUTSIDE <= value <= 1 + OUTSIDE for point in quad for value in point)
    return inside and polygon_area(quad) > LEAST_LINE_AREA


def _angles(quads: Sequence[Polygon], block: float) -> list[float]:
    """The different angles of lines and of the whole block in degrees, those that are upright left out."""
    own = [math.degrees(math.atan2(y1 - y0, x1 - x0)) for (x0, y0), (x1, y1), *_ in quads]
    angles: list[float] = []
    for degrees in (block, *own):
        if abs(degrees) > 2 and all(abs(degrees - other) > 3 for other in angles):
            angles.append(degrees)
    return angles


def _block_angle(glyph_map: np.ndarray) -> float:
    """The angle in degrees under which all ink falls into the clearest rows: the sum of squares of their ink."""
    ys, xs = np.nonzero(glyph_map > INK_THRESHOLD)
    if ys.size == 0:
        return 0.0
    angles = np.radians(np.arange(-MOST_BLOCK_DEGREES, MOST_BLOCK_DEGREES + 1))
    across = np.outer(np.cos(angles), ys) - np.outer(np.sin(angles), xs)
    clear = [float(np.square(np.bincount((row - row.min()).astype(int))).sum()) for row in across]
    return math.degrees(angles[int(np.argmax(clear))])


def _turned(glyph_map: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """The map turned so that lines at this angle lie flat, on a canvas that holds all of it; and the way back (2 3)."""
    height, width = glyph_map.shape
    side = math.ceil(math.hypot(width, height))
    there = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    there[:, 2] += (side - width) / 2, (side - height) / 2
    turned = cv2.warpAffine(glyph_map.astype(np.float32), there, (side, side), flags=cv2.INTER_LINEAR)
    return turned, cv2.invertAffineTransform(there)


def _placed(box: Box, turned: np.ndarray, back: np.ndarray, glyph_map: np.ndarray) -> Polygon:
    """A box of the turned map as a quad of the map (0..1)."""
    side, (height, width) = turned.shape[0], glyph_map.shape
    corners = np.array(box_polygon(*box)) * side
    points = (corners @ back[:, :2].T + back[:, 2]) / (width, height)
    return tuple((float(x), float(y)) for x, y in points)


def _upright_rows(glyph_map: np.ndarray, count: int) -> list[Box]:
    """The map read as exactly `count` rows."""
    rows = _join_nearest(_rows_of(_regions(glyph_map)), count)
    heights = [row[3] - row[1] for row in rows]
    if rows and (len(rows) < count or max(heights) > UNEVEN_ROWS * min(heights)):
        rows = _cut_rows(glyph_map, _enclosing(rows), count)
    return _fill_up(rows, count)


def _columns(glyph_map: np.ndarray, count: int) -> list[Box]:
    """The map read as rows of one line or more: where there are too few rows, they are cut at their widest gaps."""
    regions = _regions(glyph_map)
    rows = _rows_of(regions)
    if not rows or len(rows) >= count:
        return []
    width_to_height = glyph_map.shape[1] / glyph_map.shape[0]
    gaps = []  # width in row heights, row, place
    members: list[list[Box]] = [[] for _ in rows]
    for region in regions:
        overlaps = [min(row[3], region[3]) - max(row[1], region[1]) for row in rows]
        members[int(np.argmax(overlaps))].append(region)
    for number, (row, inside) in enumerate(zip(rows, members, strict=True)):
        inside.sort(key=lambda box: box[0])
        reach = math.inf if not inside else inside[0][2]
        for region in inside[1:]:
            if region[0] > reach:
                gaps.append(
                    ((region[0] - reach) * width_to_height / (row[3] - row[1]), number, (reach + region[0]) / 2)
                )
            reach = max(reach, region[2])
    cuts = sorted(gaps, reverse=True)[: count - len(rows)]
    boxes = []
    for number, inside in enumerate(members):
        edges = sorted(place for _, row, place in cuts if row == number)
        for left, right in pairwise([-math.inf, *edges, math.inf]):
            part = [box for box in inside if left < (box[0] + box[2]) / 2 < right]
            if part:
                boxes.append(_enclosing(part))
    return boxes


def _ink(glyph_map: np.ndarray) -> np.ndarray:
    """Which pixels are ink of regions that are no specks (H W, int): 0 for none, else the region's number."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(
        (glyph_map > INK_THRESHOLD).astype(np.uint8), connectivity=8
    )
    areas = statistics[1:, cv2.CC_STAT_AREA]
    small = np.flatnonzero(areas < _least_area(areas, glyph_map.size)) + 1
    return np.where(np.isin(labels, small), 0, labels)


def _least_area(areas: np.ndarray, pixels: int) -> float:
    """Pixels under which a region is a speck."""
    if areas.size == 0:
        return 0.0
    # Half of the ink lies in regions as large as this: many specks do not make it small.
    ordered = np.sort(areas)
    typical = ordered[np.searchsorted(np.cumsum(ordered), ordered.sum() / 2)]
    return max(2.0, min(MINIMUM_REGION_AREA * pixels, SPECK_SHARE * float(typical)))


def _regions(glyph_map: np.ndarray) -> list[Box]:
    """Boxes (0..1) of the connected regions of ink."""
    height, width = glyph_map.shape
    ink = (glyph_map > INK_THRESHOLD).astype(np.uint8)
    _, _, statistics, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    least = _least_area(statistics[1:, cv2.CC_STAT_AREA], glyph_map.size)  # row 0 is the ground
    return [
        (left / width, top / height, (left + w) / width, (top + h) / height)
        for left, top, w, h, area in statistics[1:]
        if area >= least
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
    """Exactly `count` rows: while too few, the highest free band of the image takes another one."""
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


def _layout(glyph_map: np.ndarray, strings: Sequence[str], quads: Sequence[Polygon]) -> Layout:
    """The strings in the quads of ink, in reading order or in the one that the map spells."""
    places = _reading_order(quads)
    count = len(strings)
    if 1 < count <= MOST_ORDERED:
        scores = np.array([[_spelt(glyph_map, quad, text) for text in strings] for quad in places])
        orders = [
            (float(sum(scores[i, j] for i, j in enumerate(order))), order) for order in permutations(range(count))
        ]
        best, order = max(orders, key=lambda entry: entry[0])
        if best > float(np.trace(scores)) + LEAST_ORDER_GAIN * count:
            places = [places[order.index(number)] for number in range(count)]
    return Layout(tuple(_line(text, quad) for text, quad in zip(strings, places, strict=True)))


def _reading_order(quads: Sequence[Polygon]) -> list[Polygon]:
    """Quads as a person reads them: `reading.reading_order` of lines that have no text yet."""
    return [line.polygon for line in reading_order(TextLine("", quad) for quad in quads)]


def _spelt(glyph_map: np.ndarray, quad: Polygon, text: str) -> float:
    """How much the ink in a quad looks like the text: the correlation of both, -1 to 1."""
    height, width = glyph_map.shape
    wanted = np.asarray(line_mask(text).resize((max(8, 12 * len(text)), 20)), dtype=np.float32)
    source = np.array(_line(text, quad).polygon, dtype=np.float32) * (width, height) - 0.5
    h, w = wanted.shape
    target = np.array([(0, 0), (w, 0), (w, h), (0, h)], dtype=np.float32) - 0.5
    matrix = cv2.getPerspectiveTransform(source.astype(np.float32), target)
    found = cv2.warpPerspective(glyph_map.astype(np.float32), matrix, (w, h), flags=cv2.INTER_AREA)
    a, b = wanted - wanted.mean(), found - found.mean()
    scale = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / scale) if scale > 0 else 0.0


def _line(text: str, ink: Polygon) -> TextLine:
    """The line whose ink, in the canonical font, fills the quad: its cells reach past the ink by the side bearings."""
    before, after = side_bearings(text)
    growth = 1 / max(1e-6, 1 - before - after)
    top_left, top_right, bottom_right, bottom_left = (np.array(corner) for corner in ink)
    upper, lower = (top_right - top_left) * growth, (bottom_right - bottom_left) * growth
    corners = (
        top_left - before * upper,
        top_right + after * upper,
        bottom_right + after * lower,
        bottom_left - before * lower,
    )
    # An upright line is cut at the image's edge; a tilted one would be bent by that, and ends with its ink instead.
    is_upright = top_left[1] == top_right[1]
    if not is_upright and not all(0 <= value <= 1 for corner in corners for value in corner):
        corners = (top_left, top_right, bottom_right, bottom_left)
    return TextLine(text, tuple((min(max(float(x), 0.0), 1.0), min(max(float(y), 0.0), 1.0)) for x, y in corners))
