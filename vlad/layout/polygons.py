"""Polygons in image coordinates (x right, y down, 0..1)."""

from __future__ import annotations

import cv2
import numpy as np

from vlad.types import Polygon


def box_polygon(left: float, top: float, right: float, bottom: float) -> Polygon:
    """The four corners of an upright box, clockwise from the top left."""
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def bounding_box(polygon: Polygon) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the polygon."""
    xs, ys = zip(*polygon, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def polygon_area(polygon: Polygon) -> float:
    """Area by the shoelace formula, never negative."""
    x, y = np.array(polygon).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def box_iou(a: Polygon, b: Polygon) -> float:
    """Intersection over union of the bounding boxes of two polygons."""
    left_a, top_a, right_a, bottom_a = bounding_box(a)
    left_b, top_b, right_b, bottom_b = bounding_box(b)
    width = max(0.0, min(right_a, right_b) - max(left_a, left_b))
    height = max(0.0, min(bottom_a, bottom_b) - max(top_a, top_b))
    union = (right_a - left_a) * (bottom_a - top_a) + (right_b - left_b) * (bottom_b - top_b) - width * height
    return width * height / union if union > 0 else 0.0


IOU_GRID = 512  # cells a side that `polygon_iou` counts in


def polygon_iou(a: Polygon, b: Polygon) -> float:
    """Intersection over union of two polygons of any shape, counted on a grid over both (to about a hundredth)."""
    points = np.array([*a, *b])
    lower, extent = points.min(axis=0), float(np.ptp(points, axis=0).max())
    if extent <= 0:
        return 0.0
    masks = []
    for polygon in (a, b):
        mask = np.zeros((IOU_GRID, IOU_GRID), dtype=np.uint8)
        cells = (np.array(polygon) - lower) / extent * (IOU_GRID - 1)
        cv2.fillPoly(mask, [np.rint(cells).astype(np.int32)], 1)
        masks.append(mask.astype(bool))
    union = np.logical_or(*masks).sum()
    return float(np.logical_and(*masks).sum() / union) if union else 0.0


def quad_of(polygon: Polygon) -> Polygon:
    """Four corners of a convex quad, clockwise from the top left of the text: the polygon itself if it is one.

    A polygon with more points (curved text: the upper edge forward, then the lower edge backward, as
    AnyWord and ICDAR give it) is spanned by the ends of its two edges. Corners that no perspective maps a line
    of text into (three on a line, edges that cross) are replaced by those of the bounding box.
    """
    half = len(polygon) // 2
    quad = polygon if len(polygon) == 4 else (polygon[0], polygon[half - 1], polygon[half], polygon[-1])
    return quad if _is_convex(quad) else box_polygon(*bounding_box(quad))


def letter_cells(polygon: Polygon, count: int) -> list[Polygon]:
    """The quads of `count` letters at constant pitch along a line's quad, first to last."""
    top_left, top_right, bottom_right, bottom_left = np.array(quad_of(polygon))
    cells = []
    for place in range(count):
        start, end = place / count, (place + 1) / count
        corners = (
            top_left + start * (top_right - top_left),
            top_left + end * (top_right - top_left),
            bottom_left + end * (bottom_right - bottom_left),
            bottom_left + start * (bottom_right - bottom_left),
        )
        cells.append(tuple((float(x), float(y)) for x, y in corners))
    return cells


STRIPS_A_PIECE = 4


def curved_strips(polygon: Polygon) -> list[tuple[float, float, Polygon]] | None:
    """A curved line as strips: where each starts and ends along the line (0..1), and its convex quad.

    The polygon has six points or more, as many on the upper edge (forward) as on the lower one (backward). Each pair of
    neighbours is cut in strips between smooth edges (Catmull-Rom). None for every other polygon, and where a strip is
    not convex: edges that cross or turn back.
    """
    half, odd = divmod(len(polygon), 2)
    if half < 3 or odd:
        return None
    upper, lower = np.array(polygon[:half]), np.array(polygon[half:])[::-1]
    upper, lower = _smooth(upper), _smooth(lower)
    lengths = np.linalg.norm(np.diff((upper + lower) / 2, axis=0), axis=1)
    if not (lengths > 0).all():
        return None
    places = np.concatenate([[0.0], np.cumsum(lengths)]) / lengths.sum()
    strips = []
    for i in range(len(lengths)):
        corners = (upper[i], upper[i + 1], lower[i + 1], lower[i])
        quad = tuple((float(x), float(y)) for x, y in corners)
        if not _is_convex(quad):
            return None
        strips.append((float(places[i]), float(places[i + 1]), quad))
    return strips


def _smooth(points: np.ndarray) -> np.ndarray:
    """Points (N 2) with STRIPS_A_PIECE - 1 more between each two, on a Catmull-Rom spline."""
    padded = np.concatenate([[2 * points[0] - points[1]], points, [2 * points[-1] - points[-2]]])
    t = (np.arange(STRIPS_A_PIECE) / STRIPS_A_PIECE)[:, None]
    pieces = []
    for p0, p1, p2, p3 in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        pieces.append(
            0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
        )
    return np.concatenate([*pieces, points[-1:]])


def _is_convex(quad: Polygon) -> bool:
    """Whether the quad turns the same way at all four corners, by more than rounding."""
    points = np.array(quad)
    edges = np.roll(points, -1, axis=0) - points
    following = np.roll(edges, -1, axis=0)
    turns = edges[:, 0] * following[:, 1] - edges[:, 1] * following[:, 0]
    least = 1e-6 * float(np.square(edges).sum(axis=1).max())
    return bool((turns > least).all() or (turns < -least).all())


def perspective_coefficients(quad: Polygon, width: float, height: float) -> tuple[float, ...]:
    """The eight numbers a..h that map a point of `quad`'s plane into the rectangle (0, 0, width, height).

    x' = (a x + b y + c) / (g x + h y + 1), y' = (d x + e y + f) / (g x + h y + 1): what Pillow's
    `Image.transform(..., PERSPECTIVE, ...)` takes to draw the rectangle into the quad.
    """
    target = ((0.0, 0.0), (width, 0.0), (width, height), (0.0, height))
    rows, values = [], []
    for (x, y), (u, v) in zip(quad, target, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
        values += [u, v]
    return tuple(float(value) for value in np.linalg.solve(np.array(rows), np.array(values)))
