"""Control images for other models, from a layout: canny edges (ControlNet) and character masks (TextDiffuser).

Also a plain centred layout for prompts that come without one.
"""

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
# TextDiffuser's classes (arXiv 2305.10855): 0 is the background, a character's class is its index here plus 1.
ALPHABET = string.digits + string.ascii_lowercase + string.ascii_uppercase + string.punctuation + " "
UNMARKED_CHARACTERS = "- "  # TextDiffuser's published inference removes them from the mask
BOX_SCALE = 0.9  # it shrinks each letter's box to this share
MAX_ROW_LETTERS, ROW_HEIGHT, ROW_PITCH, LETTER_ASPECT = 14, 0.16, 1.3, 1.6


def glyph_edges(layout: Layout, width: int, height: int) -> np.ndarray:
    """The edges of the layout's letters (H W, uint8), white on black."""
    ink = np.round(render_glyph_map(layout, width, height) * 255).astype(np.uint8)
    # Black on white, as MARIO-Eval renders them.
    return cv2.Canny(255 - ink, CANNY_LOW, CANNY_HIGH)


def character_mask(layout: Layout, side: int) -> np.ndarray:
    """TextDiffuser's character mask (side x side, uint8): each letter's class in a box around the letter, else 0.

    The boxes are those of TextDiffuser's inference without a segmenter: around the letter's ink, shrunk to 0.9.
    Characters outside its 95 classes, lines that are not renderable, hyphens and spaces are left out.
    """
    mask = np.zeros((side, side), dtype=np.uint8)
    for line in layout.lines:
        if not is_renderable(line):
            continue
        ink = np.zeros((side, side), dtype=np.uint8)
        render_line(ink, line.text, line.polygon)
        for letter, cell in zip(line.text, letter_cells(line.polygon, len(line.text)), strict=True):
            if letter not in ALPHABET or letter in UNMARKED_CHARACTERS:
                continue
            own = np.zeros((side, side), dtype=np.uint8)
            cv2.fillConvexPoly(own, np.rint(np.array(cell) * side - 0.5).astype(np.int32), 255)
            rows, columns = np.nonzero((ink > 127) & (own > 0))
            if not len(rows):
                continue
            top, bottom = _shrink(int(rows.min()), int(rows.max()) + 1)
            left, right = _shrink(int(columns.min()), int(columns.max()) + 1)
            mask[top:bottom, left:right] = ALPHABET.index(letter) + 1
    return mask


def _shrink(start: int, end: int) -> tuple[int, int]:
    """A range of pixels scaled by BOX_SCALE around its middle, at least one pixel."""
    margin = (end - start) * (1 - BOX_SCALE) / 2
    first = round(start + margin)
    return first, max(first + 1, round(end - margin))


def centred_layout(texts: Sequence[str]) -> Layout:
    """The texts below each other, centred in the image, long ones wrapped between words; empty without texts."""
    rows: list[str] = []
    for text in texts:
        row = ""
        for word in text.split():
            if row and len(row) + 1 + len(word) > MAX_ROW_LETTERS:
                rows.append(row)
                row = word
            else:
                row = f"{row} {word}".strip()
        rows += [row] if row else []
    if not rows:
        return Layout(())
    total = 1 + ROW_PITCH * (len(rows) - 1)
    height = min(ROW_HEIGHT, LETTER_ASPECT * 0.9 / max(map(len, rows)), 0.9 / total)
    lines = []
    for number, row in enumerate(rows):
        half, top = len(row) * height / LETTER_ASPECT / 2, 0.5 + height * (number * ROW_PITCH - total / 2)
        lines.append(TextLine(row, box_polygon(0.5 - half, top, 0.5 + half, top + height)))
    return Layout(tuple(lines))
