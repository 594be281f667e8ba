"""Typesetting: upright lines given letters of natural width and a least height, none over another.

A layout UNet that has trained for minutes leaves regions of ink that are too flat, too narrow, too small, or run into
each other. Letters rendered into them are stretched beyond what any typeface has, and no refine UNet has seen such.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import combinations

import numpy as np

from vlad.layout.fonts import line_font, line_mask
from vlad.layout.polygons import bounding_box, box_polygon
from vlad.types import Layout

# How much wider, or narrower, than in the font of glyph maps a line may be: there are wide and condensed typefaces.
MAX_STRETCH = 1.4
LEAST_HEIGHT = 0.08  # of the image: nine rows of a poster of 128 pixels, with ascenders or descenders
MARGIN = 0.02
GAP = 0.015  # between lines that ran into each other


def typeset(layout: Layout, width: int, height: int) -> Layout:
    """The layout with its upright lines typeset for an image of `width` x `height`; tilted ones stay."""
    aspect = width / height
    fonts = [line_font(line, layout.glyph_font) for line in layout.lines]
    naturals = [aspect / _width_to_height(line.text, font) for line, font in zip(layout.lines, fonts, strict=True)]
    boxes = {n: _natural(np.array(bounding_box(layout.lines[n].polygon)), naturals[n]) for n in _upright(layout)}
    for _ in boxes:  # a box that gives way may run into the next one
        for upper, lower in combinations(sorted(boxes, key=lambda n: boxes[n][1] + boxes[n][3]), 2):
            _part(boxes[upper], boxes[lower])
    lines = (
        replace(line, polygon=box_polygon(*_natural(boxes[n], naturals[n]).tolist())) if n in boxes else line
        for n, line in enumerate(layout.lines)
    )
    return replace(layout, lines=tuple(lines))


def _upright(layout: Layout) -> list[int]:
    """The numbers of the lines whose polygons are upright boxes."""
    return [n for n, line in enumerate(layout.lines) if line.polygon == box_polygon(*bounding_box(line.polygon))]


def _natural(box: np.ndarray, natural: float) -> np.ndarray:
    """The box (left, top, right, bottom) with letters of natural width: `natural` is the line's height over width."""
    left, top, right, bottom = box
    wide = right - left
    high = max(LEAST_HEIGHT, min(bottom - top, wide * natural * MAX_STRETCH, 1 - 2 * MARGIN))
    wide = min(max(wide, high / natural / MAX_STRETCH), high / natural * MAX_STRETCH, 1 - 2 * MARGIN)
    x = min(max((left + right) / 2, MARGIN + wide / 2), 1 - MARGIN - wide / 2)
    y = min(max((top + bottom) / 2, MARGIN + high / 2), 1 - MARGIN - high / 2)
    return np.array([x - wide / 2, y - high / 2, x + wide / 2, y + high / 2])


def _part(upper: np.ndarray, lower: np.ndarray) -> None:
    """Moves two boxes apart, in place, where one runs into the other: each gives way to half."""
    across = min(upper[2], lower[2]) - max(upper[0], lower[0])
    down = upper[3] + GAP - lower[1]
    if across <= 0 or down <= 0:
        return
    middle = min(max((upper[3] + lower[1]) / 2, MARGIN + LEAST_HEIGHT), 1 - MARGIN - LEAST_HEIGHT)
    upper[3], lower[1] = middle - GAP / 2, middle + GAP / 2
    upper[1] = max(MARGIN, min(upper[1], upper[3] - LEAST_HEIGHT))
    lower[3] = min(1 - MARGIN, max(lower[3], lower[1] + LEAST_HEIGHT))


@lru_cache(maxsize=65536)
def _width_to_height(text: str, font: str) -> float:
    mask = line_mask(text, font)
    return mask.width / mask.height
