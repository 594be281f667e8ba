"""Where a line's ink ends: polygons of OCR engines brought to what glyph maps mean by a polygon.

An engine's detector marks a region with room around the letters, a third of their height and more. A glyph map fills
its polygon: drawn into such a region, its letters stand beside those of the image, and are larger.
"""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np

from vlad.layout.fonts import side_bearings
from vlad.layout.polygons import bounding_box, box_polygon, quad_of
from vlad.types import TextLine

CROP_ROWS = 48  # at least so many for a line: smaller ones are enlarged, for bounds finer than a pixel
MOST_CROP_PIXELS = 4096
# Of 255. With less between ground and ink there is no telling them apart.
LEAST_CONTRAST = 24.0
# A speck is smaller, in shares of the region's height, each way.
SPECK = 0.06
# What reaches in from the rim no further than this share of the height is a neighbour: a frame, another line's letters.
INTRUSION = 0.33
# Ink that covers less of the region is not the whole line.
LEAST_WIDTH, LEAST_HEIGHT = 0.25, 0.3
# Engines leave no more room than this share of the height before and after a line: a letter was lost there.
MOST_ROOM = 0.5


def tighten_polygon(line: TextLine, image: np.ndarray) -> TextLine:
    """The line with its polygon around its ink in `image` (H W 3, uint8), as a glyph map would be drawn into it.

    The top and bottom of the ink become the polygon's; to the sides comes the room that the text's first and last
    letter have in their cells. It only ever shrinks: a side that the ink runs over stays, and where ground and ink
    cannot be told apart, or the polygon is no quad, the line stays as it is.
    """
    if len(line.polygon) != 4 or not line.text.strip():
        return line
    height, width = image.shape[:2]
    quad = _straightened(np.array(quad_of(line.polygon)) * (width, height)).astype(np.float32)
    across, down = _sides(quad)
    if min(across, down) < 2:
        return line
    scale = max(1.0, CROP_ROWS / down)
    columns, rows = math.ceil(across * scale), math.ceil(down * scale)
    if max(columns, rows) > MOST_CROP_PIXELS:
        return line
    corners = np.array([(0, 0), (columns, 0), (columns, rows), (0, rows)], dtype=np.float32)
    # Corners of pixels, not their centres: half a pixel on either side.
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


def _straightened(quad: np.ndarray) -> np.ndarray:
    """The quad's box where it is tilted by no more than a pixel, which is what engines round to; else itself."""
    (left, top), (right, above), (beside, bottom), (under, below) = quad
    if max(abs(above - top), abs(below - bottom), abs(beside - right), abs(under - left)) > 1.01:
        return quad
    return np.array(box_polygon(*bounding_box(tuple(map(tuple, quad.tolist())))))


def _sides(quad: np.ndarray) -> tuple[float, float]:
    """Mean length along the line and across it, in pixels."""
    edges = np.linalg.norm(np.roll(quad, -1, axis=0) - quad, axis=1)
    return float(edges[0] + edges[2]) / 2, float(edges[1] + edges[3]) / 2


def _ink_bounds(crop: np.ndarray) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom of the ink of a line (H W 3, uint8) that fills most of its region, else None."""
    rows, columns = crop.shape[:2]
    away = _distance_to_ground(crop)
    level, _ = cv2.threshold(away.clip(0, 255).astype(np.uint8), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    strokes = away[away > level]
    if strokes.size == 0 or np.median(strokes) < LEAST_CONTRAST:
        return None
    # An edge that pixels average lies where they are half ink.
    ink = (away > np.median(strokes) / 2).astype(np.uint8)
    _, _, regions, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    letters = [region for region in regions[1:] if _is_letter(region, rows, columns)]
    # A rule or a frame beside the letters runs to the rim; where letters themselves do, too little stands free of it.
    free = [region for region in letters if not _at_rim(region, rows, columns)]
    return _bounds(free, rows, columns) or _bounds(letters, rows, columns)


def _bounds(regions: list[np.ndarray], rows: int, columns: int) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom of all regions together where they fill most of rows and columns, else None."""
    if not regions:
        return None
    boxes = np.array(regions)
    left, top = boxes[:, cv2.CC_STAT_LEFT].min(), boxes[:, cv2.CC_STAT_TOP].min()
    right = (boxes[:, cv2.CC_STAT_LEFT] + boxes[:, cv2.CC_STAT_WIDTH]).max()
    bottom = (boxes[:, cv2.CC_STAT_TOP] + boxes[:, cv2.CC_STAT_HEIGHT]).max()
    if right - left < LEAST_WIDTH * columns or bottom - top < LEAST_HEIGHT * rows:
        return None
    if max(left, columns - right) > MOST_ROOM * rows:
        return None
    return float(left), float(top), float(right), float(bottom)


def _is_letter(region: np.ndarray, rows: int, columns: int) -> bool:
    """Whether a connected region of ink is neither a speck nor something that reaches in from beside the line."""
    left, top, width, height = (int(value) for value in region[: cv2.CC_STAT_HEIGHT + 1])
    if max(width, height) <= SPECK * rows:
        return False
    reaches = []  # how far in, from each side that it touches
    if left == 0 or left + width == columns:
        reaches.append(width)
    if top == 0 or top + height == rows:
        reaches.append(height)
    return not reaches or min(reaches) > INTRUSION * rows


def _at_rim(region: np.ndarray, rows: int, columns: int) -> bool:
    left, top, width, height = (int(value) for value in region[: cv2.CC_STAT_HEIGHT + 1])
    return left == 0 or top == 0 or left + width == columns or top + height == rows


def _distance_to_ground(crop: np.ndarray) -> np.ndarray:
    """How far each pixel's colour is from the ground's (H W, float32), which is a plane through the crop's rim."""
    rows, columns = crop.shape[:2]
    colours = crop.astype(np.float32)
    down, across = np.mgrid[0:rows, 0:columns].astype(np.float32) / max(rows, columns)
    rim = np.ones((rows, columns), dtype=bool)
    inset = max(1, rows // 16)
    rim[inset:-inset, inset:-inset] = False
    terms = np.stack([np.ones_like(down), across, down], axis=-1)
    kept = rim
    for _ in range(2):  # the second time without what stands out of the ground: letters that reach the rim
        plane, *_ = np.linalg.lstsq(terms[kept], colours[kept], rcond=None)
        away = np.linalg.norm(colours - terms @ plane, axis=-1)
        kept = rim & (away <= 2 * np.median(away[rim]) + 1)
    return away.astype(np.float32)
