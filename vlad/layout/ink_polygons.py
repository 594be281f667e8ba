"""Tightens polygons of OCR engines to the ink of their lines, as glyph maps expect them.

A text detector leaves a margin around the letters, a third of their height and more. A glyph map fills its polygon:
rendered into a detected region, its letters would be larger than those of the image, and not in the same places.
"""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np

from vlad.layout.fonts import side_bearings
from vlad.layout.polygons import bounding_box, box_polygon, quad_of
from vlad.types import TextLine

MIN_CROP_ROWS = 48  # smaller lines are enlarged, for bounds finer than a pixel
MAX_CROP_PIXELS = 4096
# Of 255: with less contrast, ink and background cannot be separated.
MIN_CONTRAST = 24.0
# Of the border's pixels, that have the second of two grounds.
MIN_GROUND_SHARE = 0.15
# Regions of ink smaller than this share of the crop's height, in both directions, are specks.
SPECK_SIZE = 0.06
# Ink that reaches in from the border by at most this share of the height is not the line's: a frame, another line.
INTRUSION_DEPTH = 0.33
# Ink that spans less of the crop is not the whole line.
MIN_WIDTH, MIN_HEIGHT = 0.25, 0.3
# Engines leave a smaller margin before and after a line, in shares of its height: with more, a letter was missed.
MAX_MARGIN = 0.5


def tighten_polygon(line: TextLine, image: np.ndarray) -> TextLine:
    """The line with its polygon tightened to its ink in `image` (H W 3, uint8), so that a glyph map matches the image.

    The polygon's top and bottom become those of the ink; at the sides the bearings of the first and last letter are
    added. It only ever shrinks: a side that the ink crosses stays. Where ink and background cannot be separated, or the
    polygon is not a quad, the line is returned unchanged.
    """
    if len(line.polygon) != 4 or not line.text.strip():
        return line
    height, width = image.shape[:2]
    quad = _snap_to_box(np.array(quad_of(line.polygon)) * (width, height)).astype(np.float32)
    across, down = _sides(quad)
    if min(across, down) < 2:
        return line
    scale = max(1.0, MIN_CROP_ROWS / down)
    columns, rows = math.ceil(across * scale), math.ceil(down * scale)
    if max(columns, rows) > MAX_CROP_PIXELS:
        return line
    corners = np.array([(0, 0), (columns, 0), (columns, rows), (0, rows)], dtype=np.float32)
    # OpenCV's coordinates are pixel centres, ours are pixel corners: half a pixel apart.
    to_crop = cv2.getPerspectiveTransform(quad - 0.5, corners - 0.5)
    crop = cv2.warpPerspective(image, to_crop, (columns, rows), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    bounds = _ink_bounds(crop)
    if bounds is None:
        return line
    left, top, right, bottom = bounds
    before, after = side_bearings(line.text)
    ink_width = (right - left) / (1 - before - after)
    left, right = max(0.0, left - before * ink_width), min(float(columns), right + after * ink_width)
    tight = np.array([[(left, top), (right, top), (right, bottom), (left, bottom)]], dtype=np.float32) - 0.5
    found = cv2.perspectiveTransform(tight, np.linalg.inv(to_crop))[0] + 0.5
    return replace(line, polygon=tuple((float(x) / width, float(y) / height) for x, y in found))


def _snap_to_box(quad: np.ndarray) -> np.ndarray:
    """The bounding box of a quad tilted by at most a pixel, an OCR engine's rounding; any other quad itself."""
    (left, top), (right, top_2), (right_2, bottom), (left_2, bottom_2) = quad
    if max(abs(top_2 - top), abs(bottom_2 - bottom), abs(right_2 - right), abs(left_2 - left)) > 1.01:
        return quad
    return np.array(box_polygon(*bounding_box(tuple(map(tuple, quad.tolist())))))


def _sides(quad: np.ndarray) -> tuple[float, float]:
    """Mean length along the line and across it, in pixels."""
    edges = np.linalg.norm(np.roll(quad, -1, axis=0) - quad, axis=1)
    return float(edges[0] + edges[2]) / 2, float(edges[1] + edges[3]) / 2


def _ink_bounds(crop: np.ndarray) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom of the ink in a crop (H W 3, uint8) that a line fills; None where none is found."""
    rows, columns = crop.shape[:2]
    distance = _distance_to_background(crop)
    level, _ = cv2.threshold(distance.clip(0, 255).astype(np.uint8), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    strokes = distance[distance > level]
    if strokes.size == 0 or np.median(strokes) < MIN_CONTRAST:
        return None
    # An antialiased edge lies where a pixel is half ink.
    ink = (distance > np.median(strokes) / 2).astype(np.uint8)
    _, _, regions, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    letters = [region for region in regions[1:] if _is_letter(region, rows, columns)]
    # Rules and frames beside the letters touch the border. Where the letters do too, the free ones span too little.
    free = [region for region in letters if not _touches_border(region, rows, columns)]
    return _bounds(free, rows, columns) or _bounds(letters, rows, columns)


def _bounds(regions: list[np.ndarray], rows: int, columns: int) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom of all regions together; None where they span too little of the crop."""
    if not regions:
        return None
    boxes = np.array(regions)
    left, top = boxes[:, cv2.CC_STAT_LEFT].min(), boxes[:, cv2.CC_STAT_TOP].min()
    right = (boxes[:, cv2.CC_STAT_LEFT] + boxes[:, cv2.CC_STAT_WIDTH]).max()
    bottom = (boxes[:, cv2.CC_STAT_TOP] + boxes[:, cv2.CC_STAT_HEIGHT]).max()
    if right - left < MIN_WIDTH * columns or bottom - top < MIN_HEIGHT * rows:
        return None
    if max(left, columns - right) > MAX_MARGIN * rows:
        return None
    return float(left), float(top), float(right), float(bottom)


def _is_letter(region: np.ndarray, rows: int, columns: int) -> bool:
    """Whether a connected region of ink is neither a speck nor an intrusion from beside the line."""
    left, top, width, height = (int(value) for value in region[: cv2.CC_STAT_HEIGHT + 1])
    if max(width, height) <= SPECK_SIZE * rows:
        return False
    depths = []  # how far it reaches in from each side that it touches
    if left == 0 or left + width == columns:
        depths.append(width)
    if top == 0 or top + height == rows:
        depths.append(height)
    return not depths or min(depths) > INTRUSION_DEPTH * rows


def _touches_border(region: np.ndarray, rows: int, columns: int) -> bool:
    left, top, width, height = (int(value) for value in region[: cv2.CC_STAT_HEIGHT + 1])
    return left == 0 or top == 0 or left + width == columns or top + height == rows


def _two_grounds(colours: np.ndarray) -> np.ndarray | None:
    """The two colours (2 3) of the border's pixels (N 3, float32); None where it has one, or a gradient."""
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 10, 1.0)
    start = (colours.mean(axis=-1) > np.median(colours.mean(axis=-1))).astype(np.int32)[:, None]
    _, labels, centres = cv2.kmeans(colours, 2, start, criteria, 1, cv2.KMEANS_USE_INITIAL_LABELS)
    labels = labels[:, 0]
    spread = np.linalg.norm(colours - centres[labels], axis=-1)
    apart = np.linalg.norm(centres[1] - centres[0])
    # A gradient fills the range between both; letters that reach the border are few.
    distinct = apart > 2 * MIN_CONTRAST and np.mean(spread > apart / 8) < 0.1
    return centres if distinct and MIN_GROUND_SHARE <= labels.mean() <= 1 - MIN_GROUND_SHARE else None


def _distance_to_background(crop: np.ndarray) -> np.ndarray:
    """The distance of each pixel's colour from the background's (H W, float32): a plane fitted to the crop's border, or
    the nearer of two colours where the border shows two grounds."""
    rows, columns = crop.shape[:2]
    colours = crop.astype(np.float32)
    down, across = np.mgrid[0:rows, 0:columns].astype(np.float32) / max(rows, columns)
    border = np.ones((rows, columns), dtype=bool)
    inset = max(1, rows // 16)
    border[inset:-inset, inset:-inset] = False
    grounds = _two_grounds(colours[border])
    if grounds is not None:
        return np.linalg.norm(colours[..., None, :] - grounds, axis=-1).min(axis=-1).astype(np.float32)
    terms = np.stack([np.ones_like(down), across, down], axis=-1)
    kept = border
    for _ in range(2):  # the second time without outliers: letters that reach the border
        plane, *_ = np.linalg.lstsq(terms[kept], colours[kept], rcond=None)
        distance = np.linalg.norm(colours - terms @ plane, axis=-1)
        kept = border & (distance <= 2 * np.median(distance[border]) + 1)
    return distance.astype(np.float32)
