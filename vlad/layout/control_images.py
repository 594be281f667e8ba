"""A layout as other models take it: edges for a canny ControlNet, classes of characters for TextDiffuser; and a plain
layout for prompts that come without one."""

from __future__ import annotations

import string
from collections.abc import Sequence

import cv2
import numpy as np

from vlad.layout.glyph_map import is_renderable, render_glyph_map, render_line
from vlad.layout.polygons import box_polygon, letter_cells
from vlad.types import Layout, TextLine

# Canny's thresholds in MARIO-Eval's ControlNet.
CANNY_LOW, CANNY_HIGH = 100, 200
# TextDiffuser's classes (arXiv 2305.10855): 0 is no character, a character's class is its place here plus 1.
ALPHABET = string.digits + string.ascii_lowercase + string.ascii_uppercase + string.punctuation + " "
NOT_SHOWN = "- "  # which its published inference takes out of the mask again
SHRINK = 0.9  # of a letter's box, there too
MOST_LETTERS, ROW_HEIGHT, ROW_PITCH, LETTER_ASPECT = 14, 0.16, 1.3, 1.6


def glyph_edges(layout: Layout, width: int, height: int) -> np.ndarray:
    """The outlines of the layout's letters (H W, uint8), white on black."""
    ink = np.round(render_glyph_map(layout, width, height) * 255).astype(np.uint8)
    # As in MARIO-Eval, which renders black letters on white; the edges are the same.
    return cv2.Canny(255 - ink, CANNY_LOW, CANNY_HIGH)


def character_mask(layout: Layout, side: int) -> np.ndarray:
    """TextDiffuser's character mask (side x side, uint8): in a box around each letter the letter's class, else 0.

    As its inference without a segmenter draws them: the letter's own box, shrunk to 0.9. Characters that are none of
    its 95 classes, lines without legible text, hyphens and spaces leave nothing.
    """
    mask = np.zeros((side, side), dtype=np.uint8)
    for line in layout.lines:
        if not is_renderable(line):
            continue
        ink = np.zeros((side, side), dtype=np.uint8)
        render_line(ink, line.text, line.polygon)
        for letter, cell in zip(line.text, letter_cells(line.polygon, len(line.text)), strict=True):
            if letter not in ALPHABET or letter in NOT_SHOWN:
                continue
            own = np.zeros((side, side), dtype=np.uint8)
            # The next cell begins with the pixel after this one's last.
            cv2.fillConvexPoly(own, np.rint(np.array(cell) * side - 0.5).astype(np.int32), 255)
            rows, columns = np.nonzero((ink > 127) & (own > 0))
            if not len(rows):
                continue
            top, bottom = _shrunk(int(rows.min()), int(rows.max()) + 1)
            left, right = _shrunk(int(columns.min()), int(columns.max()) + 1)
            mask[top:bottom, left:right] = ALPHABET.index(letter) + 1
    return mask


def _shrunk(start: int, end: int) -> tuple[int, int]:
    """A stretch of pixels, a tenth shorter, at least one."""
    margin = (end - start) * (1 - SHRINK) / 2
    first = round(start + margin)
    return first, max(first + 1, round(end - margin))


def centred_layout(texts: Sequence[str]) -> Layout:
    """The texts one under the other in the middle of the image, long ones broken between words; empty without any."""
    rows: list[str] = []
    for text in texts:
        row = ""
        for word in text.split():
            if row and len(row) + 1 + len(word) > MOST_LETTERS:
                rows.append(row)
                row = word
            else:
                row = f"{row} {word}".strip()
        rows += [row] if row else []
    if not rows:
        return Layout(())
    whole = 1 + ROW_PITCH * (len(rows) - 1)
    height = min(ROW_HEIGHT, LETTER_ASPECT * 0.9 / max(map(len, rows)), 0.9 / whole)
    lines = []
    for number, row in enumerate(rows):
        half, top = len(row) * height / LETTER_ASPECT / 2, 0.5 + height * (number * ROW_PITCH - whole / 2)
        lines.append(TextLine(row, box_polygon(0.5 - half, top, 0.5 + half, top + height)))
    return Layout(tuple(lines))
