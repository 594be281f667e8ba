"""Glyph maps: a layout rendered as white strokes on black, in one font a script, or each line in its typeface.

Each line is fitted into its polygon; a polygon of more than four points bends it along a curve.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image

from vlad.layout.fonts import CANONICAL_FONT, font_size_for, line_font, line_mask, line_pixels, missing_glyphs
from vlad.layout.polygons import curved_strips, perspective_coefficients, polygon_area, quad_of
from vlad.layout.scripts import CJK, script_of
from vlad.types import Layout, Polygon, TextLine

VERTICAL_ASPECT = 1.5  # height over width from which East Asian text runs top to bottom


def _oversampling(width: int, height: int) -> int:
    """Small maps are rendered larger and averaged down, so that strokes thinner than a pixel keep their weight."""
    return 4 if max(width, height) <= 128 else 2


def render_line(coverage: np.ndarray, text: str, polygon: Polygon, font: str = CANONICAL_FONT) -> None:
    """Renders a line of text into `coverage` (H W, uint8) in place, as the maximum of both."""
    if not text.strip():
        return
    height, width = coverage.shape
    strips = curved_strips(polygon)
    if strips is not None:
        _render_curved(coverage, text, strips, font)
        return
    box = _upright_box(polygon, width, height)
    if box is not None:
        left, top, right, bottom = box
        area = (right - left) * (bottom - top)
    else:
        quad = np.array(quad_of(polygon)) * (width, height)
        (left, top), (right, bottom) = quad.min(axis=0).tolist(), quad.max(axis=0).tolist()
        area = polygon_area(tuple(map(tuple, quad.tolist())))
    # Only the bounding box is rendered, on whole pixels; clipped before rounding, as corners may be anywhere.
    x0, y0 = math.floor(min(max(left, 0), width)), math.floor(min(max(top, 0), height))
    x1, y1 = math.ceil(min(max(right, 0), width)), math.ceil(min(max(bottom, 0), height))
    # An area under a thousandth of a pixel shows nothing, and its perspective cannot be solved.
    if x1 <= x0 or y1 <= y0 or area < 1e-3:
        return
    oversampling = _oversampling(width, height)
    if box is not None:
        ink = _upright_ink(text, font, box, (x0, y0, x1, y1), oversampling)
    else:
        ink = _tilted_ink(text, font, quad, np.array((x0, y0)), np.array((x1, y1)), oversampling)
    window = coverage[y0:y1, x0:x1]
    np.maximum(window, ink, out=window)


def _render_curved(coverage: np.ndarray, text: str, strips: list[tuple[float, float, Polygon]], font: str) -> None:
    """Renders a line along a curve: each strip of its polygon shows its part of the line, in perspective."""
    height, width = coverage.shape
    quads = [np.array(quad) * (width, height) for _, _, quad in strips]
    line_height = float(np.mean([np.linalg.norm(quad[3] - quad[0]) for quad in quads]))
    if line_height < 1e-2:
        return
    oversampling = _oversampling(width, height)
    mask = line_mask(text, font, font_size_for(line_height * oversampling))
    for (start, end, _), quad in zip(strips, quads, strict=True):
        lower = (np.floor(quad.min(axis=0)) - 1).clip(0, (width, height)).astype(int)
        upper = (np.ceil(quad.max(axis=0)) + 1).clip(0, (width, height)).astype(int)
        if (upper <= lower).any():
            continue
        corners = (quad - lower) * oversampling
        size = int((upper - lower)[0]) * oversampling, int((upper - lower)[1]) * oversampling
        # The quad shows the line from start to end. The stencil cuts off what the plane shows beyond, except for one
        # pixel, so that neighbouring strips overlap and leave no seam.
        a, b, c, d, e, f, g, h = perspective_coefficients(
            tuple((float(x), float(y)) for x, y in corners), (end - start) * mask.width, mask.height
        )
        shift = start * mask.width  # u + shift = ((a + shift g) x + ...) / (g x + h y + 1)
        moved = (a + shift * g, b + shift * h, c + shift, d, e, f, g, h)
        ink = np.asarray(mask.transform(size, Image.Transform.PERSPECTIVE, moved, Image.Resampling.BILINEAR))
        stencil = np.zeros(ink.shape, dtype=np.uint8)
        cv2.fillConvexPoly(stencil, np.rint(corners).astype(np.int32), 1)
        stencil = cv2.dilate(stencil, np.ones((2 * oversampling + 1, 2 * oversampling + 1), np.uint8))
        enlarged = Image.fromarray(ink * stencil)
        window = coverage[lower[1] : upper[1], lower[0] : upper[0]]
        np.maximum(window, np.asarray(enlarged.reduce(oversampling)), out=window)


Box = tuple[float, float, float, float]


def _is_vertical(text: str, width: float, height: float) -> bool:
    """Whether a line runs top to bottom: several East Asian characters in a box clearly taller than wide."""
    return script_of(text) in CJK and len(text) > 1 and height > VERTICAL_ASPECT * width


def _upright_box(polygon: Polygon, width: int, height: int) -> Box | None:
    """The box in pixels of an axis-aligned polygon (to a hundredth of a pixel); None for any other."""
    if len(polygon) != 4:
        return None
    (left, top), (right, top_2), (right_2, bottom), (left_2, bottom_2) = polygon
    skew = max(abs(top_2 - top), abs(bottom_2 - bottom)) * height, max(abs(right_2 - right), abs(left_2 - left)) * width
    if max(skew) >= 0.01 or not (left < right and top < bottom):
        return None
    return left * width, top * height, right * width, bottom * height


def _upright_ink(text: str, font: str, box: Box, window: tuple[int, int, int, int], oversampling: int) -> np.ndarray:
    """The ink (uint8) of an upright line inside a window of the map (left, top, right, bottom)."""
    left, top, right, bottom = box
    x0, y0, x1, y1 = window
    # Small letters are averaged down from a larger mask; large ones have enough pixels.
    small = oversampling > 2
    vertical = _is_vertical(text, right - left, bottom - top)
    line_height = right - left if vertical else bottom - top
    size_pixels = font_size_for(line_height * (oversampling if small else 1))
    if small:
        mask = line_mask(text, font, size_pixels, vertical)
        mask_width, mask_height = mask.size
    else:
        pixels = line_pixels(text, font, size_pixels, vertical)
        mask_height, mask_width = pixels.shape
    across, down = mask_width / (right - left), mask_height / (bottom - top)  # pixels of the mask per pixel of the map
    # The window in the mask's coordinates.
    start_x, start_y, end_x, end_y = (x0 - left) * across, (y0 - top) * down, (x1 - left) * across, (y1 - top) * down
    if not small:
        # Pixel centres: half a pixel of the map is `across` / 2 pixels of the mask.
        to_mask = np.array([[across, 0, start_x + across / 2 - 0.5], [0, down, start_y + down / 2 - 0.5]])
        method = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(pixels, to_mask, (x1 - x0, y1 - y0), flags=method)
    # The mask is padded where the window reaches beyond it.
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
    """The ink (uint8) of a line in any quad: its mask in perspective, rendered larger and averaged down."""
    down = float(np.linalg.norm(quad[3] - quad[0]) + np.linalg.norm(quad[2] - quad[1])) / 2
    along = float(np.linalg.norm(quad[1] - quad[0]) + np.linalg.norm(quad[2] - quad[3])) / 2
    vertical = _is_vertical(text, along, down)
    mask = line_mask(text, font, font_size_for((along if vertical else down) * oversampling), vertical)
    corners = tuple((float(x), float(y)) for x, y in (quad - lower) * oversampling)
    coefficients = perspective_coefficients(corners, mask.width, mask.height)
    width, height = (int(extent) for extent in (upper - lower) * oversampling)
    enlarged = mask.transform((width, height), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    return np.asarray(enlarged.reduce(oversampling))


def render_ink(coverage: np.ndarray, layout: Layout) -> None:
    """Renders a layout's glyph map into `coverage` (H W, uint8, zeros).

    Lines that are not renderable leave no ink; `ignore_mask` marks them.
    """
    for line in layout.lines:
        if is_renderable(line):
            render_line(coverage, line.text, line.polygon, line_font(line, layout.glyph_font))


def is_renderable(line: TextLine) -> bool:
    """Whether a glyph map shows the line: its text is marked legible, and a font has all its glyphs."""
    return line.valid and not missing_glyphs(line.text)


def render_glyph_map(layout: Layout, width: int, height: int) -> np.ndarray:
    """The glyph map of a layout, H W, float32 in 0..1."""
    coverage = np.zeros((height, width), dtype=np.uint8)
    render_ink(coverage, layout)
    return coverage.astype(np.float32) / 255


def all_renderable(layout: Layout) -> bool:
    """Whether a glyph map shows every line, so that `ignore_mask` is empty."""
    return all(map(is_renderable, layout.lines))


def ignore_mask(layout: Layout, width: int, height: int) -> np.ndarray:
    """True (H W) where the glyph map does not show a line of the layout: the loss is masked out there."""
    mask = np.zeros((height, width), dtype=bool)
    for line in layout.lines:
        if is_renderable(line):
            continue
        points = np.array(line.polygon) * (width, height)
        left, top = np.floor(points.min(axis=0)).astype(int).clip(0)
        right, bottom = np.ceil(points.max(axis=0)).astype(int).clip(0)
        mask[top:bottom, left:right] = True
    return mask
