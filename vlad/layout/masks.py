"""Masks (H W, bool): the pixels of an image that polygons or lines of text cover, or that an edit regenerates."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from vlad.layout.polygons import bounding_box, box_polygon
from vlad.types import Layout, Polygon, TextLine

LINE_MASK_MARGIN = 0.2  # how far the mask of a line reaches beyond it, in the line's heights
# Masks for training: the shares that cover lines, and that cover no line (to remove text); the others are any box.
LINES_SHARE, NO_LINES_SHARE = 0.6, 0.2
SMALLEST_BOX, LARGEST_BOX = 0.15, 0.9  # sides of such a box, shares of the image's
BOX_ATTEMPTS = 8  # to find a box that covers no line, each with smaller boxes


def mask_from_image(image: Image.Image) -> np.ndarray:
    """The mask in a greyscale image: the pixels lighter than middle grey."""
    return np.asarray(image.convert("L")) >= 128


def polygons_mask(polygons: Sequence[Polygon], width: int, height: int) -> np.ndarray:
    """The pixels that polygons cover, those on their edges included."""
    mask = np.zeros((height, width), dtype=np.uint8)
    for polygon in polygons:
        points = np.array(polygon).clip(-1, 2) * (width, height) - 0.5  # pixel centres
        cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 1)
    return mask.astype(bool)


def dilate_mask(mask: np.ndarray, across: int, down: int) -> np.ndarray:
    """The mask grown by `across` pixels to the left and right, by `down` pixels up and down."""
    kernel = np.ones((2 * down + 1, 2 * across + 1), dtype=np.uint8)
    return cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)


def lines_mask(lines: Sequence[TextLine], width: int, height: int, margin: float = LINE_MASK_MARGIN) -> np.ndarray:
    """The lines' polygons, each grown by `margin` of its height, at least by a pixel."""
    mask = np.zeros((height, width), dtype=bool)
    for line in lines:
        pixels = max(1, round(margin * _line_height(line) * height))
        mask |= dilate_mask(polygons_mask([line.polygon], width, height), pixels, pixels)
    return mask


def lines_touching(mask: np.ndarray, layout: Layout) -> tuple[TextLine, ...]:
    """The lines of a layout that share a pixel with a mask."""
    height, width = mask.shape
    return tuple(line for line in layout.lines if (mask & polygons_mask([line.polygon], width, height)).any())


def random_mask(rng: np.random.Generator, layout: Layout, width: int, height: int) -> np.ndarray:
    """A mask for training, like those that users draw: around one or more lines, beside them, or any box."""
    kind = rng.random() if layout.lines else 1.0
    if kind < LINES_SHARE:
        count = 1 + int(rng.integers(len(layout.lines)))
        chosen = rng.permutation(len(layout.lines))[:count]
        mask = np.zeros((height, width), dtype=bool)
        for line in (layout.lines[i] for i in chosen):
            # More room to the sides than above and below: the old word or the new one may be longer.
            sides, ends = rng.uniform(0, (2.0, 0.5)) * _line_height(line) * height
            mask |= dilate_mask(polygons_mask([line.polygon], width, height), 1 + round(sides), 1 + round(ends))
        return mask
    mask = _random_box(rng, LARGEST_BOX, width, height)
    if kind < LINES_SHARE + NO_LINES_SHARE:
        for number in range(1, BOX_ATTEMPTS):
            if not lines_touching(mask, layout):
                break
            mask = _random_box(rng, LARGEST_BOX + (SMALLEST_BOX - LARGEST_BOX) * number / BOX_ATTEMPTS, width, height)
    return mask


def _random_box(rng: np.random.Generator, most: float, width: int, height: int) -> np.ndarray:
    extent = rng.uniform(SMALLEST_BOX, most, size=2)
    left, top = rng.uniform(0, 1 - extent)
    return polygons_mask([box_polygon(left, top, left + extent[0], top + extent[1])], width, height)


def _line_height(line: TextLine) -> float:
    """The height of an upright line, or the shorter side of a tilted one's quad; a share of the image."""
    points = np.array(line.polygon)
    half = len(points) // 2
    ends = np.linalg.norm(points[0] - points[-1]), np.linalg.norm(points[half - 1] - points[half])
    _, top, _, bottom = bounding_box(line.polygon)
    return min(float(ends[0] + ends[1]) / 2, bottom - top)
