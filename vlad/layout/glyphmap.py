"""Glyph maps: a layout drawn as white strokes on black, one canonical font, each line fitted into its polygon."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vlad.layout.fonts import CANONICAL_FONT, font_size_for, line_mask, missing_glyphs
from vlad.layout.polygons import perspective_coefficients, polygon_area, quad_of
from vlad.records import Layout, Polygon


def _oversampling(width: int, height: int) -> int:
    """Small pictures are drawn larger and averaged down, so that strokes thinner than a pixel keep their weight."""
    return 4 if max(width, height) <= 128 else 2


def draw_line(coverage: np.ndarray, text: str, polygon: Polygon, font: str = CANONICAL_FONT) -> None:
    """Adds a line's ink to `coverage` (H W, uint8), in place, as the maximum of both."""
    height, width = coverage.shape
    quad = np.array(quad_of(polygon)) * (width, height)
    # Only the polygon's own box is drawn; it starts and ends on whole pixels.
    lower = np.maximum(np.floor(quad.min(axis=0)).astype(int), 0)
    upper = np.minimum(np.ceil(quad.max(axis=0)).astype(int), (width, height))
    # Under a thousandth of a pixel there is nothing to see, and nothing to solve the perspective from.
    if (upper <= lower).any() or polygon_area(quad) < 1e-3 or not text.strip():
        return
    draw = _upright_ink if _is_upright(quad) else _tilted_ink
    ink = draw(text, font, quad, lower, upper, _oversampling(width, height))
    window = coverage[lower[1] : upper[1], lower[0] : upper[0]]
    np.maximum(window, np.asarray(ink), out=window)


def _is_upright(quad: np.ndarray) -> bool:
    """Whether the quad is a box whose sides run along the picture's, to a hundredth of a pixel, not mirrored."""
    (left, top), (right, bottom) = quad[0], quad[2]
    box = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    return bool(left < right and top < bottom and np.abs(quad - box).max() < 0.01)


def _upright_ink(
    text: str, font: str, quad: np.ndarray, lower: np.ndarray, upper: np.ndarray, oversampling: int
) -> Image.Image:
    """The ink in the window from `lower` to `upper`: each pixel's share of it by area, exactly."""
    size = quad[2] - quad[0]
    mask = line_mask(text, font, font_size_for(float(size[1]) * oversampling))
    extent = np.array(mask.size)
    scale = extent / size  # pixels of the mask a pixel of the picture
    # Where the window stands in the mask; what it covers around the mask is empty.
    start, end = (lower - quad[0]) * scale, (upper - quad[0]) * scale
    before = np.ceil(np.maximum(0, -start)).astype(int)
    after = np.ceil(np.maximum(0, end - extent)).astype(int)
    canvas = Image.new("L", tuple(int(x) for x in extent + before + after))
    canvas.paste(mask, (int(before[0]), int(before[1])))
    box = tuple(float(x) for x in (*np.maximum(0, start + before), *np.minimum(canvas.size, end + before)))
    # Averaging what is enlarged would show the mask's own pixels.
    method = Image.Resampling.BOX if (scale >= 1).all() else Image.Resampling.BILINEAR
    return canvas.resize(tuple(int(x) for x in upper - lower), method, box)  # type: ignore[arg-type]


def _tilted_ink(
    text: str, font: str, quad: np.ndarray, lower: np.ndarray, upper: np.ndarray, oversampling: int
) -> Image.Image:
    """The same for any quad: the mask in perspective, drawn larger and averaged down."""
    line_height = float(np.linalg.norm(quad[3] - quad[0]) + np.linalg.norm(quad[2] - quad[1])) / 2
    mask = line_mask(text, font, font_size_for(line_height * oversampling))
    corners = tuple((float(x), float(y)) for x, y in (quad - lower) * oversampling)
    coefficients = perspective_coefficients(corners, mask.width, mask.height)
    size = tuple(int(extent) for extent in (upper - lower) * oversampling)
    enlarged = mask.transform(size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    return enlarged.reduce(oversampling)


def draw_ink(layout: Layout, width: int, height: int) -> np.ndarray:
    """The glyph map of a layout as bytes: height x width, uint8.

    Lines that are not valid, or that the canonical font cannot draw, leave no ink; `ignore_mask` marks them.
    """
    coverage = np.zeros((height, width), dtype=np.uint8)
    for line in layout.lines:
        if line.valid and not missing_glyphs(line.text):
            draw_line(coverage, line.text, line.polygon)
    return coverage


def draw_glyph_map(layout: Layout, width: int, height: int) -> np.ndarray:
    """The glyph map of a layout: height x width, float32 in 0..1."""
    return draw_ink(layout, width, height).astype(np.float32) / 255


def ignore_mask(layout: Layout, width: int, height: int) -> np.ndarray:
    """True (H W) where a line stands that the glyph map does not show: the loss is masked out there."""
    mask = np.zeros((height, width), dtype=bool)
    for line in layout.lines:
        if line.valid and not missing_glyphs(line.text):
            continue
        points = np.array(line.polygon) * (width, height)
        left, top = np.floor(points.min(axis=0)).astype(int).clip(0)
        right, bottom = np.ceil(points.max(axis=0)).astype(int).clip(0)
        mask[top:bottom, left:right] = True
    return mask
