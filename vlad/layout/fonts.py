"""Fonts: finding font files, glyph coverage, and rendering a line of text as a mask.

Each letter of a simple script is centred in a cell of its own, and all cells of a line are equally wide, in glyph maps
and in rendered signs (`data/signs.py`) alike: the refine UNet learns fastest where a letter has the same cell in both.
Cell width and vertical extent come from the canonical font, whatever font renders the letter. Lines of other scripts
(`scripts.py`), and those in the font "proportional", are shaped as a whole by libraqm, inside Pillow, in the first of
their fonts that has every glyph. Glyph maps of images in proportional type take that one (`data.glyph_font`): the
correlation of a line's ink with its glyph map is .51 on rendered posters, .33 in cells of equal width. With "typeface"
each line is set in the typeface that it names (`typefaces.py`).

The DejaVu fonts come with matplotlib. Fonts of other scripts are Google's Noto (SIL Open Font License), searched for in
the folders of VLAD_FONTS (separated like PATH), else in the system's font folders.
"""

from __future__ import annotations

import os
from functools import cache, lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from vlad.layout import typefaces
from vlad.layout.scripts import CJK, SIMPLE, script_of
from vlad.types import TextLine
from vlad.utils.errors import UserError, did_you_mean

# The DejaVu family (Bitstream Vera licence, free to embed) comes inside matplotlib.
FONT_FILES = {
    "sans": "DejaVuSans.ttf",
    "sans-bold": "DejaVuSans-Bold.ttf",
    "serif": "DejaVuSerif.ttf",
    "serif-bold": "DejaVuSerif-Bold.ttf",
    "serif-bold-italic": "DejaVuSerif-BoldItalic.ttf",
    "sans-bold-oblique": "DejaVuSans-BoldOblique.ttf",
    "mono": "DejaVuSansMono.ttf",
    "mono-bold": "DejaVuSansMono-Bold.ttf",
    "proportional": "DejaVuSans-Bold.ttf",
}
CANONICAL_FONT = "mono-bold"
PROPORTIONAL_FONT = "proportional"
TYPEFACE_FONT = "typeface"  # of glyph maps: each line in the typeface that it names (`line_font`)
JOINERS = "\u200c\u200d"  # they affect how their neighbours are shaped and have no glyph
CELL_WIDTH_EM = 0.602  # the advance of DejaVu Sans Mono
FONT_SIZES_PIXELS = (48, 64, 96, 128, 192, 256, 384)

# Fonts that need not be installed: name, file.
OPTIONAL_FONT_FILES = {
    "noto-arabic": "NotoSansArabic-Bold.ttf",
    "noto-hebrew": "NotoSansHebrew-Bold.ttf",
    "noto-devanagari": "NotoSansDevanagari-Bold.ttf",
    "noto-thai": "NotoSansThai-Bold.ttf",
    "noto-cjk": "NotoSansCJK-Bold.ttc",
    "noto": "NotoSans-Bold.ttf",
}
# The fonts of each script, in the order in which they are tried.
SCRIPT_FONTS = {
    "Arabic": ("noto-arabic", "sans-bold", "sans"),
    "Hebrew": ("noto-hebrew", "sans-bold", "sans"),
    "Devanagari": ("noto-devanagari",),
    "Thai": ("noto-thai",),
    **dict.fromkeys(CJK, ("noto-cjk",)),
    SIMPLE: ("mono-bold", "sans-bold", "sans", "noto", "noto-cjk"),
}
# Faces inside the CJK collection: the glyph of a character differs between languages.
_CJK_FACES = {"Kana": 0, "Hangul": 1, "Han": 2}
SYSTEM_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
)
DEBIAN_PACKAGES = dict.fromkeys(CJK, "fonts-noto-cjk")  # else fonts-noto-core


@cache
def _found_fonts() -> dict[str, Path]:
    """Paths of the installed optional fonts, by file name."""
    given = os.environ.get("VLAD_FONTS")
    folders = SYSTEM_FOLDERS if given is None else [part for part in given.split(os.pathsep) if part]
    wanted = set(OPTIONAL_FONT_FILES.values())
    found: dict[str, Path] = {}
    for folder in folders:
        for root, _, names in os.walk(Path(folder).expanduser()):
            for name in wanted.intersection(names):
                found.setdefault(name, Path(root) / name)
    return found


def installed_optional_fonts() -> list[str]:
    """The optional fonts that this machine has: without them, glyph maps leave out lines of their scripts."""
    return [name for name in OPTIONAL_FONT_FILES if has_font(name)]


def has_font(name: str) -> bool:
    """Whether the font is installed."""
    return name in FONT_FILES or OPTIONAL_FONT_FILES.get(name) in _found_fonts()


def font_path(name: str) -> Path:
    """The file of a font. Raises UserError for an unknown name and for an optional font that is not installed."""
    if name in typefaces.NAMES:
        return typefaces.typeface_file(name)
    known = [*FONT_FILES, *OPTIONAL_FONT_FILES, *sorted(typefaces.NAMES)]
    if name not in known:
        raise UserError(f"There is no font {name!r};{did_you_mean(name, known)} known: {', '.join(known)}.")
    if name in FONT_FILES:
        return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / FONT_FILES[name]
    if not has_font(name):
        raise UserError(
            f"The font {name!r} ({OPTIONAL_FONT_FILES[name]}) is not installed; install Noto's fonts (Debian:"
            " fonts-noto-core, fonts-noto-cjk), or name their folder in VLAD_FONTS."
        )
    return _found_fonts()[OPTIONAL_FONT_FILES[name]]


@cache
def load_font(name: str, size_pixels: int, face: int = 0) -> ImageFont.FreeTypeFont:
    """The font at a size in pixels per em; `face` is its index inside a collection."""
    return ImageFont.truetype(str(font_path(name)), size_pixels, index=face)


@lru_cache(maxsize=65536)
def has_glyph(character: str, name: str = CANONICAL_FONT) -> bool:
    """Whether the font renders this character rather than the box for missing glyphs.

    Rendered, not looked up in the font's character map: the shaper also composes characters that the map lacks.
    """
    if character.isspace() or character in JOINERS:
        return True
    font = load_font(name, 48)
    return character.isprintable() and bytes(font.getmask(character)) != bytes(font.getmask("\U0010ffff"))


def missing_glyphs(text: str, name: str | None = None) -> str:
    """The characters of `text` that the font has no glyph for, each once, in order.

    Without a name: those missing from the best of the fonts of the text's script; empty where one of them has all.
    """
    names = [name] if name is not None else [font for font in _fonts_of(script_of(text)) if has_font(font)]
    missing = ["".join(dict.fromkeys(c for c in text if not has_glyph(c, font))) for font in names or [CANONICAL_FONT]]
    return min(missing, key=len)


def missing_font_reason(text: str) -> str:
    """Why `missing_glyphs(text)` is not empty, and the remedy, to end an error message."""
    script = script_of(text)
    missing = " ".join(missing_glyphs(text))
    if script == SIMPLE or any(has_font(font) for font in SCRIPT_FONTS.get(script, ()) if font.startswith("noto-")):
        return f"no installed font has {missing} and the rest of the text; replace it"
    package = DEBIAN_PACKAGES.get(script, "fonts-noto-core")
    return (
        f"no installed font has {missing} ({script}); install Noto's fonts (Debian: {package}), name their folder in"
        " VLAD_FONTS, or replace it"
    )


def _fonts_of(script: str) -> tuple[str, ...]:
    return SCRIPT_FONTS.get(script, (*SCRIPT_FONTS[SIMPLE][1:],))


@lru_cache(maxsize=65536)
def font_for(text: str, name: str = CANONICAL_FONT) -> str:
    """The font that renders the line: `name` where it has every glyph and the script is simple, else the first font
    of the script that has them all; where none has, the one that lacks the fewest."""
    script = script_of(text)
    names = [font for font in _fonts_of(script) if has_font(font)]
    if script == SIMPLE:
        names.insert(0, name)
    return min(names, key=lambda font: len(missing_glyphs(text, font)), default=name)


def line_font(line: TextLine, glyph_font: str) -> str:
    """The font of a line in glyph maps of `glyph_font`; of typefaces it is the line's own, or a plain one."""
    if glyph_font != TYPEFACE_FONT:
        return glyph_font
    return line.font if line.font in typefaces.NAMES else typefaces.PLAIN


def needs_shaping(text: str, name: str = CANONICAL_FONT) -> bool:
    """Whether the line is shaped as a whole rather than rendered in a cell a character."""
    is_proportional = name == PROPORTIONAL_FONT or name in typefaces.NAMES
    return is_proportional or script_of(text) != SIMPLE or bool(missing_glyphs(text, CANONICAL_FONT))


def ink_extent(text: str) -> tuple[float, float]:
    """Top and bottom of the text's ink above the baseline in the canonical font, in em (up is positive)."""
    extents = [extent for extent in map(_character_extent, text) if extent is not None]
    if not extents:  # spaces only
        return 0.73, 0.0
    return max(top for top, _ in extents), min(bottom for _, bottom in extents)


@lru_cache(maxsize=65536)
def _character_extent(character: str) -> tuple[float, float] | None:
    """Top and bottom of one character; None without ink."""
    if character.isspace():  # line and paragraph separators too, which libraqm refuses
        return None
    _, top, _, bottom = load_font(CANONICAL_FONT, 384).getbbox(character, anchor="ls")
    return (-top / 384, -bottom / 384) if bottom > top else None


@lru_cache(maxsize=4096)  # at most some 30 kB each
def _cell_mask(character: str, name: str, size_pixels: int, top_em: float, bottom_em: float) -> np.ndarray:
    """One character in its cell (uint8), scaled down where it is wider than the cell or reaches below it."""
    width = round(CELL_WIDTH_EM * size_pixels)
    top, height = round(top_em * size_pixels), max(1, round((top_em - bottom_em) * size_pixels))
    canvas = Image.new("L", (width, height))
    if character.isspace():
        return np.asarray(canvas)
    # The bitmap holds the ink alone; the offset places it relative to the baseline.
    ink, offset = load_font(name, size_pixels).getmask2(character, mode="L", anchor="ls")
    if ink.size[0] and ink.size[1]:
        glyph = Image.frombytes("L", ink.size, bytes(ink))
        start = max(0, top + offset[1])
        # The J of some fonts descends below the baseline, that of the canonical font does not.
        fitted = (min(glyph.width, width), max(1, min(glyph.height, height - start)))
        if fitted != glyph.size:
            glyph = glyph.resize(fitted, Image.Resampling.BOX)
        canvas.paste(glyph, ((width - glyph.width) // 2, start))
    return np.asarray(canvas)


def line_pixels(
    text: str, name: str = CANONICAL_FONT, size_pixels: int = FONT_SIZES_PIXELS[0], vertical: bool = False
) -> np.ndarray:
    """A line of text as white ink on black (h w, uint8), cropped to the ink's height.

    One cell a character, or shaped as a whole and cropped to the ink's width too. `vertical`: top to bottom, as in East
    Asian vertical text. Raises UserError where shaping needs libraqm and Pillow lacks it.
    """
    if needs_shaping(text, name):
        return np.asarray(_shaped_mask(text, font_for(text, name), size_pixels, vertical))
    font = name if not missing_glyphs(text, name) else CANONICAL_FONT
    top, bottom = ink_extent(text)
    return np.concatenate([_cell_mask(character, font, size_pixels, top, bottom) for character in text], axis=1)


@lru_cache(maxsize=256)
def line_mask(
    text: str, name: str = CANONICAL_FONT, size_pixels: int = FONT_SIZES_PIXELS[0], vertical: bool = False
) -> Image.Image:
    """`line_pixels` as an image (mode L)."""
    return Image.fromarray(line_pixels(text, name, size_pixels, vertical))


def _shaped_mask(text: str, name: str, size_pixels: int, vertical: bool) -> Image.Image:
    script = script_of(text)
    if not features.check("raqm") and (vertical or script not in (SIMPLE, *CJK)):
        raise UserError(
            f"{text!r} is {script} and has to be shaped, and this Pillow has no libraqm; install Pillow's own wheel"
            " (pip install --force-reinstall pillow), or rebuild Pillow with libraqm."
        )
    font = load_font(name, size_pixels, _CJK_FACES.get(script, 0) if name == "noto-cjk" else 0)
    # libraqm detects the horizontal direction itself; vertical text has to be requested.
    direction, anchor = ("ttb", "lt") if vertical else (None, "ls")
    left, top, right, bottom = font.getbbox(text, direction=direction, anchor=anchor)
    margin = size_pixels // 4
    width, height = int(right - left) + 2 * margin, int(bottom - top) + 2 * margin
    canvas = Image.new("L", (max(1, width), max(1, height)))
    place = margin - left, margin - top
    ImageDraw.Draw(canvas).text(place, text, fill=255, font=font, direction=direction, anchor=anchor)
    return canvas.crop(canvas.getbbox() or (0, 0, 1, 1))


@lru_cache(maxsize=65536)
def side_bearings(text: str, name: str = CANONICAL_FONT) -> tuple[float, float]:
    """The empty shares of a line's width before its first and after its last ink, in a font of glyph maps."""
    columns = np.flatnonzero(np.asarray(line_mask(text, name)).max(axis=0) > 127)
    if columns.size == 0:
        return 0.0, 0.0
    width = line_mask(text, name).width
    return float(columns[0]) / width, float(width - 1 - columns[-1]) / width


def font_size_for(height_pixels: float) -> int:
    """The smallest of the cached font sizes that needs no upscaling at this line height."""
    return next((size for size in FONT_SIZES_PIXELS if 0.7 * size >= height_pixels), FONT_SIZES_PIXELS[-1])
