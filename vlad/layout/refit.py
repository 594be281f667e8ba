"""Refit: reads a layout off a generated glyph map, given the strings that it should hold.

    glyph map (0..1) -> ink -> regions -> lines, in several readings -> matched to the strings -> rendered again
                                                  the reading whose rendering is most similar to the map -> Layout

A small layout UNet learns where text stands long before it learns which letter goes where. The strings are known from
the prompt, so only the places of the lines are read off its glyph map, and the text is rendered again. The readings:

    rows        regions at one height are a line; touching rows are cut where there is least ink
    split rows  the same, but rows are split at their widest gaps while there are too few lines
    chains      regions linked to their nearest neighbours, cut at the longest links: each line has its own angle

Rows are read upright and at the angles of the chains. Upright rows are taken unless the rendering of another reading
is clearly more similar to the map: early in training a map has no letters that could tell readings apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from itertools import pairwise, permutations

import cv2
import numpy as np

from vlad.layout.fonts import CANONICAL_FONT, PROPORTIONAL_FONT, TYPEFACE_FONT, line_mask, side_bearings
from vlad.layout.glyph_map import render_glyph_map
from vlad.layout.line_detection import detect_tilted_lines
from vlad.layout.polygons import box_polygon, polygon_area
from vlad.layout.reading_order import reading_order
from vlad.layout.typesetting import typeset
from vlad.types import Layout, Polygon, TextLine

INK_THRESHOLD = 0.3  # under a half: a map generated in a few steps is dim at the ends of its lines
# Regions smaller than this share of the image are specks of the sampler, not letters ...
MINIMUM_REGION_AREA = 0.0012
# ... unless the letters are as small: then regions under this share of a typical one are specks.
SPECK_SHARE = 0.2
# Rows whose heights differ by more than this factor were separated wrongly.
UNEVEN_ROWS = 1.8
# How far from an even spacing a cut between touching rows is searched for, in row pitches.
CUT_SEARCH = 0.12
# The similarity to the map that another reading needs, and by how much it must exceed that of upright rows. Maps from
# early in training, which no reading fits, stay under the first.
MIN_SIMILARITY = 0.42
MIN_GAIN = 0.08
# By how much another order of the strings must correlate better with the map than the reading order, a line.
MIN_ORDER_GAIN = 0.2
# By how much of the image's size a line's ink may seem to leave it: a pixel's corner, the slack of a rotated map.
EDGE_TOLERANCE = 0.02
MIN_LINE_AREA = 1e-4
MAX_BLOCK_DEGREES = 45
MAX_PERMUTED_LINES = 6  # up to so many lines, all orders of the strings are tried

Box = tuple[float, float, float, float]  # left, top, right, bottom


def refit_layout(
    glyph_map: np.ndarray,
    strings: Sequence[str],
    font: str = CANONICAL_FONT,
    typefaces: Sequence[str | None] = (),
) -> Layout:
    """The layout of `strings` in a font of glyph maps that fits a generated one (H W, 0..1) best.

    With more lines than strings, the nearest lines are merged; with fewer, touching rows are cut where there is least
    ink, and lines still missing are put into a free band of the image. Strings are assigned to the lines in reading
    order, unless the map clearly spells them in another. In proportional type, and in `typefaces` (of each string, None
    where none is asked for), the lines are typeset (`typesetting`). No strings give an empty layout.
    """
    if not strings:
        return Layout((), font)
    if font not in (PROPORTIONAL_FONT, TYPEFACE_FONT):
        return _best_reading(glyph_map, strings, font)
    found = _best_reading(glyph_map, strings, PROPORTIONAL_FONT)
    lines = zip(found.lines, typefaces or [None] * len(strings), strict=True)
    height, width = glyph_map.shape
    return typeset(Layout(tuple(replace(line, font=face) for line, face in lines), font), width, height)


def _best_reading(glyph_map: np.ndarray, strings: Sequence[str], font: str) -> Layout:
    rows = [box_polygon(*row) for row in _upright_rows(glyph_map, len(strings))]
    best = _match_strings(glyph_map, strings, rows, font)
    if not (glyph_map > INK_THRESHOLD).any():
        return best
    highest = max(MIN_SIMILARITY, ink_similarity(best, glyph_map) + MIN_GAIN)
    for quads in _alternative_readings(glyph_map, len(strings)):
        layout = _match_strings(glyph_map, strings, quads, font)
        similarity = ink_similarity(layout, glyph_map)
        if similarity > highest:
            best, highest = layout, similarity
    return best


def ink_similarity(layout: Layout, glyph_map: np.ndarray) -> float:
    """The overlap (intersection over union) of the ink of a layout and of a map (H W, 0..1), both slightly blurred."""
    height, width = glyph_map.shape
    sigma = max(0.6, max(height, width) / 128)
    rendered, given = (
        cv2.GaussianBlur(np.clip(ink, 0, 1).astype(np.float32), (0, 0), sigma)
        for ink in (render_glyph_map(layout, width, height), glyph_map)
    )
    return float(np.minimum(rendered, given).sum() / max(1e-6, np.maximum(rendered, given).sum()))


def _alternative_readings(glyph_map: np.ndarray, count: int) -> list[list[Polygon]]:
    """Quads around the ink of `count` lines in each reading but upright rows, where it finds that many."""
    chains = detect_tilted_lines(_labelled_ink(glyph_map), count)
    readings = [chains] if chains is not None else []
    readings.append([box_polygon(*row) for row in _split_rows(glyph_map, count)])
    for degrees in _distinct_angles(chains or [], _block_angle(glyph_map)):
        rotated, inverse = _rotated(glyph_map, degrees)
        for read in (_upright_rows, _split_rows):
            readings += [[_to_map(row, rotated, inverse, glyph_map) for row in read(rotated, count)]]
    return [quads for quads in readings if len(quads) == count and all(map(_is_plausible, quads))]


def _is_plausible(quad: Polygon) -> bool:
    """Whether a line can stand there: inside the image, within tolerance, and not flat."""
    inside = all(-EDGE_TOLERANCE <= value <= 1 + EDGE_TOLERANCE for point in quad for value in point)
    return inside and polygon_area(quad) > MIN_LINE_AREA


def _distinct_angles(quads: Sequence[Polygon], block: float) -> list[float]:
    """The distinct angles in degrees of the lines and of the whole block, without those near zero."""
    own = [math.degrees(math.atan2(y1 - y0, x1 - x0)) for (x0, y0), (x1, y1), *_ in quads]
    angles: list[float] = []
    for degrees in (block, *own):
        if abs(degrees) > 2 and all(abs(degrees - other) > 3 for other in angles):
            angles.append(degrees)
    return angles


def _block_angle(glyph_map: np.ndarray) -> float:
    """The angle in degrees at which all ink falls into the most distinct rows (the largest sum of squared row ink)."""
    ys, xs = np.nonzero(glyph_map > INK_THRESHOLD)
    if ys.size == 0:
        return 0.0
    angles = np.radians(np.arange(-MAX_BLOCK_DEGREES, MAX_BLOCK_DEGREES + 1))
    across = np.outer(np.cos(angles), ys) - np.outer(np.sin(angles), xs)
    distinct = [float(np.square(np.bincount((row - row.min()).astype(int))).sum()) for row in across]
    return math.degrees(angles[int(np.argmax(distinct))])


def _rotated(glyph_map: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """The map rotated so that lines at this angle are horizontal, uncropped; and the inverse transform (2 3)."""
    height, width = glyph_map.shape
    side = math.ceil(math.hypot(width, height))
    transform = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    transform[:, 2] += (side - width) / 2, (side - height) / 2
    rotated = cv2.warpAffine(glyph_map.astype(np.float32), transform, (side, side), flags=cv2.INTER_LINEAR)
    return rotated, cv2.invertAffineTransform(transform)


def _to_map(box: Box, rotated: np.ndarray, inverse: np.ndarray, glyph_map: np.ndarray) -> Polygon:
    """A box of the rotated map as a quad of the map (0..1)."""
    side, (height, width) = rotated.shape[0], glyph_map.shape
    corners = np.array(box_polygon(*box)) * side
    points = (corners @ inverse[:, :2].T + inverse[:, 2]) / (width, height)
    return tuple((float(x), float(y)) for x, y in points)


def _upright_rows(glyph_map: np.ndarray, count: int) -> list[Box]:
    """The map read as exactly `count` rows."""
    rows = _merge_nearest(_group_into_rows(_regions(glyph_map)), count)
    heights = [row[3] - row[1] for row in rows]
    if rows and (len(rows) < count or max(heights) > UNEVEN_ROWS * min(heights)):
        rows = _cut_rows(glyph_map, reduce(_union, rows), count)
    return _add_missing_rows(rows, count)


def _split_rows(glyph_map: np.ndarray, count: int) -> list[Box]:
    """The map read as rows of one line or more: where there are too few rows, they are split at their widest gaps."""
    regions = _regions(glyph_map)
    rows = _group_into_rows(regions)
    if not rows or len(rows) >= count:
        return []
    width_to_height = glyph_map.shape[1] / glyph_map.shape[0]
    gaps = []  # width in row heights, row, position
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
                boxes.append(reduce(_union, part))
    return boxes


def _labelled_ink(glyph_map: np.ndarray) -> np.ndarray:
    """The region number of each inked pixel (H W, int); 0 for the background and specks."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(
        (glyph_map > INK_THRESHOLD).astype(np.uint8), connectivity=8
    )
    areas = statistics[1:, cv2.CC_STAT_AREA]
    small = np.flatnonzero(areas < _speck_area(areas, glyph_map.size)) + 1
    return np.where(np.isin(labels, small), 0, labels)


def _speck_area(areas: np.ndarray, pixels: int) -> float:
    """The area in pixels under which a region is a speck."""
    if areas.size == 0:
        return 0.0
    # Half of the ink lies in regions of at least this size, however many specks there are.
    ordered = np.sort(areas)
    typical = ordered[np.searchsorted(np.cumsum(ordered), ordered.sum() / 2)]
    return max(2.0, min(MINIMUM_REGION_AREA * pixels, SPECK_SHARE * float(typical)))


def _regions(glyph_map: np.ndarray) -> list[Box]:
    """Boxes (0..1) of the connected regions of ink."""
    height, width = glyph_map.shape
    ink = (glyph_map > INK_THRESHOLD).astype(np.uint8)
    _, _, statistics, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    least = _speck_area(statistics[1:, cv2.CC_STAT_AREA], glyph_map.size)  # row 0 is the background
    return [
        (left / width, top / height, (left + w) / width, (top + h) / height)
        for left, top, w, h, area in statistics[1:]
        if area >= least
    ]


def _group_into_rows(regions: list[Box]) -> list[Box]:
    """Rows of regions that overlap vertically by more than half of the lower one's height."""
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
    """`count` rows of similar height from a block of ink whose rows touch, cut where there is least ink."""
    height, width = glyph_map.shape
    top, bottom = round(block[1] * height), round(block[3] * height)
    weight = glyph_map[top:bottom].sum(axis=1)  # ink of each pixel row of the block
    pitch = (bottom - top) / count
    edges = [0]
    for number in range(1, count):
        window = np.arange(round((number - CUT_SEARCH) * pitch), round((number + CUT_SEARCH) * pitch) + 1)
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


def _merge_nearest(rows: list[Box], count: int) -> list[Box]:
    """At most `count` rows: those with the smallest gap between them are merged first."""
    rows = list(rows)
    while len(rows) > count:
        gaps = [below[1] - above[3] for above, below in pairwise(rows)]
        index = int(np.argmin(gaps))
        rows[index : index + 2] = [_union(rows[index], rows[index + 1])]
    return rows


def _add_missing_rows(rows: list[Box], count: int) -> list[Box]:
    """Exactly `count` rows: while there are too few, another one is put into the highest free band of the image."""
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


def _match_strings(glyph_map: np.ndarray, strings: Sequence[str], quads: Sequence[Polygon], font: str) -> Layout:
    """The strings assigned to the quads of ink, in reading order or in the order that the map spells."""
    places = _reading_order(quads)
    count = len(strings)
    if 1 < count <= MAX_PERMUTED_LINES:
        scores = np.array([[_spelling_correlation(glyph_map, quad, text, font) for text in strings] for quad in places])
        orders = [
            (float(sum(scores[i, j] for i, j in enumerate(order))), order) for order in permutations(range(count))
        ]
        best, order = max(orders, key=lambda entry: entry[0])
        if best > float(np.trace(scores)) + MIN_ORDER_GAIN * count:
            places = [places[order.index(number)] for number in range(count)]
    lines = tuple(_line_around_ink(text, quad, font) for text, quad in zip(strings, places, strict=True))
    return Layout(lines, font)


def _reading_order(quads: Sequence[Polygon]) -> list[Polygon]:
    """`reading_order` of quads without text."""
    return [line.polygon for line in reading_order(TextLine("", quad) for quad in quads)]


def _spelling_correlation(glyph_map: np.ndarray, quad: Polygon, text: str, font: str) -> float:
    """The correlation of the ink in a quad with the text rendered into it, -1 to 1."""
    height, width = glyph_map.shape
    expected = np.asarray(line_mask(text, font).resize((max(8, 12 * len(text)), 20)), dtype=np.float32)
    source = np.array(_line_around_ink(text, quad, font).polygon, dtype=np.float32) * (width, height) - 0.5
    h, w = expected.shape
    target = np.array([(0, 0), (w, 0), (w, h), (0, h)], dtype=np.float32) - 0.5
    matrix = cv2.getPerspectiveTransform(source.astype(np.float32), target)
    found = cv2.warpPerspective(glyph_map.astype(np.float32), matrix, (w, h), flags=cv2.INTER_AREA)
    a, b = expected - expected.mean(), found - found.mean()
    scale = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / scale) if scale > 0 else 0.0


def _line_around_ink(text: str, ink: Polygon, font: str) -> TextLine:
    """The line whose ink fills the quad in the font: its cells reach past the ink by the side bearings."""
    before, after = side_bearings(text, font)
    growth = 1 / max(1e-6, 1 - before - after)
    top_left, top_right, bottom_right, bottom_left = (np.array(corner) for corner in ink)
    upper, lower = (top_right - top_left) * growth, (bottom_right - bottom_left) * growth
    corners = (
        top_left - before * upper,
        top_right + after * upper,
        bottom_right + after * lower,
        bottom_left - before * lower,
    )
    # An upright line is clipped at the image's edge; clipping would distort a tilted one, which ends with its ink.
    is_upright = top_left[1] == top_right[1]
    if not is_upright and not all(0 <= value <= 1 for corner in corners for value in corner):
        corners = (top_left, top_right, bottom_right, bottom_left)
    return TextLine(text, tuple((min(max(float(x), 0.0), 1.0), min(max(float(y), 0.0), 1.0)) for x, y in corners))
