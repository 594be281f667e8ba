"""Fonts: which file draws a character, and the mask of a line of text set at constant pitch.

Every letter stands in the middle of a cell of its own, all cells of a line equally wide, in the glyph map and
in the pictures of `data/synthetic.py` alike: a letter's cell is then the same in both, which is what the
refine UNet learns from fastest. The cell and the vertical extent come from the canonical font, whatever
font draws the letter.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageFont

from vlad.errors import UserError, did_you_mean

# The DejaVu family (Bitstream Vera licence, free to embed) comes inside matplotlib.
FONT_FILES = {
    "sans": "DejaVuSans.ttf",
    "sans-bold": "DejaVuSans-Bold.ttf",
    "serif": "DejaVuSerif.ttf",
    "serif-bold": "DejaVuSerif-Bold.ttf",
    "mono": "DejaVuSansMono.ttf",
    "mono-bold": "DejaVuSansMono-Bold.ttf",
}
CANONICAL_FONT = "mono-bold"
CELL_WIDTH_EM = 0.602  # the advance of DejaVu Sans Mono
FONT_SIZES_PIXELS = (48, 64, 96, 128, 192, 256, 384)


def font_path(name: str) -> Path:
    """The file of a font. Raises UserError for a name we don't have."""
    if name not in FONT_FILES:
        raise UserError(f"There is no font {name!r};{did_you_mean(name, FONT_FILES)} known: {', '.join(FONT_FILES)}.")
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / FONT_FILES[name]


@cache
def load_font(name: str, size_pixels: int) -> ImageFont.FreeTypeFont:
    """The font at a size (pixels an em)."""
    return ImageFont.truetype(str(font_path(name)), size_pixels)


@lru_cache(maxsize=65536)
def has_glyph(character: str, name: str = CANONICAL_FONT) -> bool:
    """Whether the font draws this character itself rather than its 'missing' box."""
    if character.isspace():
        return True
    font = load_font(name, 48)
    return character.isprintable() and bytes(font.getmask(character)) != bytes(font.getmask("\U0010ffff"))


def missing_glyphs(text: str, name: str = CANONICAL_FONT) -> str:
    """The characters of `text` that the font cannot draw, each once, in order."""
    return "".join(dict.fromkeys(character for character in text if not has_glyph(character, name)))


def ink_extent(text: str) -> tuple[float, float]:
    """Top and bottom of the text's ink over the baseline in the canonical font, in em (up is positive)."""
    extents = [extent for extent in map(_character_extent, text) if extent is not None]
    if not extents:  # spaces only
        return 0.73, 0.0
    return max(top for top, _ in extents), min(bottom for _, bottom in extents)


@lru_cache(maxsize=65536)
def _character_extent(character: str) -> tuple[float, float] | None:
    """The same for one character; None for a space. Separators of lines and paragraphs are spaces too: the shaping
    library refuses them."""
    if character.isspace():
        return None
    _, top, _, bottom = load_font(CANONICAL_FONT, 384).getbbox(character, anchor="ls")
    return (-top / 384, -bottom / 384) if bottom > top else None


@lru_cache(maxsize=4096)  # at most some 30 kB each
def _cell_mask(character: str, name: str, size_pixels: int, top_em: float, bottom_em: float) -> np.ndarray:
    """One character in its cell (uint8), squeezed where it is wider than the cell or hangs out below it."""
    width = round(CELL_WIDTH_EM * size_pixels)
    top, height = round(top_em * size_pixels), max(1, round((top_em - bottom_em) * size_pixels))
    canvas = Image.new("L", (width, height))
    if character.isspace():
        return np.asarray(canvas)
    # Pillow's core draws the glyph's ink alone; the offset says where it starts against the baseline.
    ink, offset = load_font(name, size_pixels).getmask2(character, mode="L", anchor="ls")
    if ink.size[0] and ink.size[1]:
        glyph = Image.frombytes("L", ink.size, bytes(ink))
        start = max(0, top + offset[1])
        # The J of some fonts hangs below the line where the canonical one stands on it.
        fitted = (min(glyph.width, width), max(1, min(glyph.height, height - start)))
        if fitted != glyph.size:
            glyph = glyph.resize(fitted, Image.Resampling.BOX)
        canvas.paste(glyph, ((width - glyph.width) // 2, start))
    return np.asarray(canvas)


def line_pixels(text: str, name: str = CANONICAL_FONT, size_pixels: int = FONT_SIZES_PIXELS[0]) -> np.ndarray:
    """A line of text as white ink on black (h w, uint8): one cell a character, cropped to the ink's height."""
    top, bottom = ink_extent(text)
    return np.concatenate([_cell_mask(character, name, size_pixels, top, bottom) for character in text], axis=1)


@lru_cache(maxsize=256)
def line_mask(text: str, name: str = CANONICAL_FONT, size_pixels: int = FONT_SIZES_PIXELS[0]) -> Image.Image:
    """`line_pixels` as a picture (mode L)."""
    return Image.fromarray(line_pixels(text, name, size_pixels))


@lru_cache(maxsize=65536)
def side_bearings(text: str) -> tuple[float, float]:
    """Empty share of the line's width before its first and after its last ink, in the canonical font."""
    columns = np.flatnonzero(np.asarray(line_mask(text)).max(axis=0) > 127)
    if columns.size == 0:
        return 0.0, 0.0
    width = line_mask(text).width
    return float(columns[0]) / width, float(width - 1 - columns[-1]) / width


def font_size_for(height_pixels: float) -> int:
    """The smallest size kept in memory whose letters need no enlarging at this line height."""
    return next((size for size in FONT_SIZES_PIXELS if 0.7 * size >= height_pixels), FONT_SIZES_PIXELS[-1])
