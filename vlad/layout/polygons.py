"""Polygon geometry in image coordinates (x right, y down, 0..1): area, IoU, quads, perspective, curved text."""

from __future__ import annotations

import numpy as np

from vlad.types import Polygon


def box_polygon(left: float, top: float, right: float, bottom: float) -> Polygon:
    """The four corners of an upright box, clockwise from the top left."""
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def bounding_box(polygon: Polygon) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a polygon."""
    xs, ys = zip(*polygon, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def polygon_area(polygon: Polygon) -> float:
    """Area by the shoelace formula, never negative."""
    x, y = np.array(polygon).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def polygon_iou(a: Polygon, b: Polygon) -> float:
    """Intersection over union of two polygons of any shape, edges that cross included."""
    import shapely

    first, second = (shapely.make_valid(shapely.Polygon(polygon)) for polygon in (a, b))
    union = first.union(second).area
    return first.intersection(second).area / union if union else 0.0


def quad_of(polygon: Polygon) -> Polygon:
    """A polygon as a convex quad, clockwise from the top left of the text: itself where it is one.

    A polygon with more points (curved text: the upper edge forward, then the lower edge backward, as in AnyWord and
    ICDAR) becomes the quad between the ends of its two edges. A quad that no perspective maps a line of text into
    (three corners on a line, edges that cross) is replaced by its bounding box.
    """
    half = len(polygon) // 2
    quad = polygon if len(polygon) == 4 else (polygon[0], polygon[half - 1], polygon[half], polygon[-1])
    return quad if _is_convex(quad) else box_polygon(*bounding_box(quad))


def letter_cells(polygon: Polygon, count: int) -> list[Polygon]:
    """A line's quad divided into `count` cells of equal width, one a letter, first to last."""
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


STRIPS_PER_SEGMENT = 4  # between two neighbouring points of a curved edge


def curved_strips(polygon: Polygon) -> list[tuple[float, float, Polygon]] | None:
    """A curved line of text as strips: start and end of each along the line (0..1), and its convex quad.

    The polygon has six points or more, as many on the upper edge (forward) as on the lower one (backward). The edges
    are smoothed (Catmull-Rom) and cut into STRIPS_PER_SEGMENT strips between two neighbouring points. None for any
    other polygon, and where a strip is not convex (edges that cross or turn back).
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
    """Points (N 2) with STRIPS_PER_SEGMENT - 1 more between neighbours, on a Catmull-Rom spline."""
    padded = np.concatenate([[2 * points[0] - points[1]], points, [2 * points[-1] - points[-2]]])
    t = (np.arange(STRIPS_PER_SEGMENT) / STRIPS_PER_SEGMENT)[:, None]
    pieces = []
    for p0, p1, p2, p3 in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        pieces.append(
            0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
        )
    return np.concatenate([*pieces, points[-1:]])


def _is_convex(quad: Polygon) -> bool:
    """Whether the quad turns in the same direction at all four corners, by more than rounding errors."""
    points = np.array(quad)
    edges = np.roll(points, -1, axis=0) - points
    following = np.roll(edges, -1, axis=0)
    turns = edges[:, 0] * following[:, 1] - edges[:, 1] * following[:, 0]
    least = 1e-6 * float(np.square(edges).sum(axis=1).max())
    return bool((turns > least).all() or (turns < -least).all())


def perspective_coefficients(quad: Polygon, width: float, height: float) -> tuple[float, ...]:
    """The coefficients a..h of the perspective that maps `quad` to the rectangle (0, 0, width, height).

    x' = (a x + b y + c) / (g x + h y + 1), y' = (d x + e y + f) / (g x + h y + 1): the form in which Pillow's
    `Image.transform(..., PERSPECTIVE, ...)` takes them to paste the rectangle's content into the quad.
    """
    target = ((0.0, 0.0), (width, 0.0), (width, height), (0.0, height))
    rows, values = [], []
    for (x, y), (u, v) in zip(quad, target, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
        values += [u, v]
    return tuple(float(value) for value in np.linalg.solve(np.array(rows), np.array(values)))
