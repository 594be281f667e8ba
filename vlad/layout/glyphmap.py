"""Glyph maps: a layout drawn as white strokes on black, one canonical font, each line fitted into its polygon."""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image

from vlad.layout.fonts import CANONICAL_FONT, font_size_for, line_mask, line_pixels, missing_glyphs
from vlad.layout.polygons import perspective_coefficients, polygon_area, quad_of
from vlad.records import Layout, Polygon, TextLine


def _oversampling(width: int, height: int) -> int:
    """Small pictures are drawn larger and averaged down, so that strokes thinner than a pixel keep their weight."""
    return 4 if max(width, height) <= 128 else 2


def draw_line(coverage: np.ndarray, text: str, polygon: Polygon, font: str = CANONICAL_FONT) -> None:
    """Adds a line's ink to `coverage` (H W, uint8), in place, as the maximum of both."""
    if not text.strip():
        return
    height, width = coverage.shape
    box = _upright_box(polygon, width, height)
    if box is not None:
        left, top, right, bottom = box
        area = (right - left) * (bottom - top)
    else:
        quad = np.array(quad_of(polygon)) * (width, height)
        (left, top), (right, bottom) = quad.min(axis=0).tolist(), quad.max(axis=0).tolist()
        area = polygon_area(tuple(map(tuple, quad.tolist())))
    # Only the polygon's own box is drawn; it starts and ends on whole pixels.
    # Far outside it is cut before it is rounded: a corner may be anywhere.
    x0, y0 = math.floor(min(max(left, 0), width)), math.floor(min(max(top, 0), height))
    x1, y1 = math.ceil(min(max(right, 0), width)), math.ceil(min(max(bottom, 0), height))
    # Under a thousandth of a pixel there is nothing to see, and nothing to solve the perspective from.
    if x1 <= x0 or y1 <= y0 or area < 1e-3:
        return
    oversampling = _oversampling(width, height)
    if box is not None:
        ink = _upright_ink(text, font, box, (x0, y0, x1, y1), oversampling)
    else:
        ink = _tilted_ink(text, font, quad, np.array((x0, y0)), np.array((x1, y1)), oversampling)
    window = coverage[y0:y1, x0:x1]
    np.maximum(window, ink, out=window)


Box = tuple[float, float, float, float]


def _upright_box(polygon: Polygon, width: int, height: int) -> Box | None:
    """The polygon's box in pixels where its sides run along the picture's, to a hundredth of a pixel; else None."""
    if len(polygon) != 4:
        return None
    (left, top), (right, above), (beside, bottom), (under, below) = polygon
    skew = max(abs(above - top), abs(below - bottom)) * height, max(abs(beside - right), abs(under - left)) * width
    if max(skew) >= 0.01 or not (left < right and top < bottom):
        return None
    return left * width, top * height, right * width, bottom * height


def _upright_ink(text: str, font: str, box: Box, window: tuple[int, int, int, int], oversampling: int) -> np.ndarray:
    """The ink in a window of the picture (left, top, right, bottom), uint8."""
    left, top, right, bottom = box
    x0, y0, x1, y1 = window
    # Small letters are averaged by area from a larger mask; large ones have pixels enough as they are.
    small = oversampling > 2
    size_pixels = font_size_for((bottom - top) * (oversampling if small else 1))
    if small:
        mask = line_mask(text, font, size_pixels)
        mask_width, mask_height = mask.size
    else:
        pixels = line_pixels(text, font, size_pixels)
        mask_height, mask_width = pixels.shape
    across, down = mask_width / (right - left), mask_height / (bottom - top)  # pixels of the mask a pixel here
    # Where the window stands in the mask.
    start_x, start_y, end_x, end_y = (x0 - left) * across, (y0 - top) * down, (x1 - left) * across, (y1 - top) * down
    if not small:
        # Pixel centres: half a pixel here is half of `across` there.
        to_mask = np.array([[across, 0, start_x + across / 2 - 0.5], [0, down, start_y + down / 2 - 0.5]])
        method = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(pixels, to_mask, (x1 - x0, y1 - y0), flags=method)
    # What the window covers around the mask is empty.
    before = math.ceil(max(0, -start_x)), math.ceil(max(0, -start_y))
    after = math.ceil(max(0, end_x - mask.width)), math.ceil(max(0, end_y - mask.height))
    canvas = Image.new("L", (mask.width + before[0] + after[0], mask.height + before[1] + after[1]))
    canvas.paste(mask, before)
    covered = (
        max(0.0, start_x + before[0]),
        max(0.0, start_y + before[1]),
        min(float(canvas.width), end_x + before[0]),
        min(float(canvas.height), end_y + before[1]),
    )
    method = Image.Resampling.BOX if min(across, down) >= 1 else Image.Resampling.BILINEAR
    return np.asarray(canvas.resize((x1 - x0, y1 - y0), method, covered))


def _tilted_ink(
    text: str, font: str, quad: np.ndarray, lower: np.ndarray, upper: np.ndarray, oversampling: int
) -> np.ndarray:
    """The same for any quad: the mask in perspective, drawn larger and averaged down."""
    line_height = float(np.linalg.norm(quad[3] - quad[0]) + np.linalg.norm(quad[2] - quad[1])) / 2
    mask = line_mask(text, font, font_size_for(line_height * oversampling))
    corners = tuple((float(x), float(y)) for x, y in (quad - lower) * oversampling)
    coefficients = perspective_coefficients(corners, mask.width, mask.height)
    width, height = (int(extent) for extent in (upper - lower) * oversampling)
    enlarged = mask.transform((width, height), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    return np.asarray(enlarged.reduce(oversampling))


def draw_ink(coverage: np.ndarray, layout: Layout) -> None:
    """Draws a layout's glyph map into `coverage` (H W, uint8, zeros).

    Lines that are not valid, or that the canonical font cannot draw, leave no ink; `ignore_mask` marks them.
    """
    for line in layout.lines:
        if _is_shown(line):
            draw_line(coverage, line.text, line.polygon)


def _is_shown(line: TextLine) -> bool:
    return line.valid and not missing_glyphs(line.text)


def draw_glyph_map(layout: Layout, width: int, height: int) -> np.ndarray:
    """The glyph map of a layout: height x width, float32 in 0..1."""
    coverage = np.zeros((height, width), dtype=np.uint8)
    draw_ink(coverage, layout)
    return coverage.astype(np.float32) / 255


def shows_all(layout: Layout) -> bool:
    """Whether the glyph map shows every line, and `ignore_mask` is empty."""
    return all(map(_is_shown, layout.lines))


def ignore_mask(layout: Layout, width: int, height: int) -> np.ndarray:
    """True (H W) where a line stands that the glyph map does not show: the loss is masked out there."""
    mask = np.zeros((height, width), dtype=bool)
    for line in layout.lines:
        if _is_shown(line):
            continue
        points = np.array(line.polygon) * (width, height)
        left, top = np.floor(points.min(axis=0)).astype(int).clip(0)
        right, bottom = np.ceil(points.max(axis=0)).astype(int).clip(0)
        mask[top:bottom, left:right] = True
    return mask
