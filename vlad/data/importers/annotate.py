"""Annotating one image of a source: its text, its caption, and the bytes of its sample.

    entry -> header checked, decoded, turned upright, downsized -> lines: the source's, or by OCR -> caption -> encoded

The result depends on the image alone, on whatever core or machine it is made.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from vlad.data.decoding import (
    MAX_IMAGE_PIXELS,
    BadSample,
    encode_sample,
    refuse_too_much_text,
)
from vlad.data.image_pixels import SOURCE_FORMATS, orientation_of, to_rgb
from vlad.data.importers.caption_templates import compose_caption, strings_to_quote, with_quotations
from vlad.data.importers.sources import Entry, ImageRef, Skipped, Source, SourceLine, UnusableEntry
from vlad.data.options import MIN_SIDE_PIXELS, AnnotateOptions
from vlad.data.shards.writer import Statistics, statistics_of
from vlad.layout.fonts import PROPORTIONAL_FONT, font_for, load_font, missing_glyphs
from vlad.layout.ink_polygons import tighten_polygon
from vlad.layout.polygons import bounding_box, box_polygon, polygon_area, quad_of
from vlad.layout.reading_order import reading_order
from vlad.layout.scripts import CJK, SIMPLE, script_of
from vlad.types import Layout, Polygon, Sample, TextLine

MIN_CONFIDENCE = 0.5  # of the OCR engine; below it a line counts as not legible
# Above this height over width a line of several letters runs up or down, and the engine does not say which.
TALL_ASPECT = 1.5
MAX_ASPECT = 16
# A region may be so many times as wide, for its height, as its text in a plain font: a single letter, several. Letters
# are narrow, wide or spaced; beyond that the engine has read something else than what stands there.
MAX_STRETCH_OF_ONE, MAX_STRETCH = 1.8, 3.5
MAX_AREA_OF_ONE = 0.9  # share of the image: an engine that finds no edge of a large letter takes all of it
MIN_LETTER_ASPECT = 0.35  # of I and l, which have serifs in some fonts
MAX_IMAGE_BYTES = 256_000_000
# A region of the source counts as read when the engine's lines cover this share of its box, and a line is ignored when
# an ignored region covers this share of the line's.
MIN_COVERED_SHARE = 0.3

_WHOLE_IMAGE = box_polygon(0.0, 0.0, 1.0, 1.0)
# How EXIF's orientations move a point of the stored image (x, y in 0..1).
_TURNS: dict[int, Callable[[float, float], tuple[float, float]]] = {
    2: lambda x, y: (1 - x, y),
    3: lambda x, y: (1 - x, 1 - y),
    4: lambda x, y: (x, 1 - y),
    5: lambda x, y: (y, x),
    6: lambda x, y: (1 - y, x),
    7: lambda x, y: (1 - y, 1 - x),
    8: lambda x, y: (y, 1 - x),
}

ReadText = Callable[[np.ndarray], tuple[TextLine, ...]]


@dataclass(frozen=True)
class Draft:
    """The members of a sample; with `wants_caption` its caption is still empty, and has to quote `strings`."""

    key: str
    members: dict[str, bytes]
    strings: tuple[str, ...]
    wants_caption: bool
    statistics: Statistics

    def captioned(self, caption: str) -> Draft:
        """The sample with a caption."""
        record = json.loads(self.members["json"])
        record["caption"] = caption
        members = {**self.members, "json": json.dumps(record, ensure_ascii=False).encode()}
        return replace(self, members=members, wants_caption=False)


def annotate(
    source: Source, ref: ImageRef, read_text: ReadText, options: AnnotateOptions, captioned: bool
) -> Draft | Skipped:
    """The sample of an image, or the reason why it is skipped.

    `read_text` is OCR: the lines of an image (H W 3, uint8) with polygons in 0..1. With `captioned` a missing caption
    is left to a captioner.
    """
    try:
        entry = source.read(ref)
        loaded = load_image(entry.image, options.max_side_pixels)
        lines = _lines_of(entry, loaded, read_text, options.tight_lines)
        refuse_too_much_text(entry.caption or "", Layout(lines))
    except UnusableEntry as error:
        return Skipped(ref.name, str(error))
    except BadSample as error:
        return Skipped(ref.name, f"it has too much text: {error}")
    strings = strings_to_quote(lines, options.max_strings)
    caption = entry.caption
    if caption is None and not captioned:
        caption = compose_caption(strings, bool(lines))
    elif caption is not None and options.quote_text:
        # Nothing is left of a caption of quotation marks alone.
        caption = with_quotations(caption, strings) or compose_caption(strings, bool(lines))
    sample = Sample(ref.key, loaded.pixels, caption or "", Layout(lines), entry.objects, entry.source, entry.licence)
    members = encode_sample(sample, options.image_format)
    return Draft(ref.key, members, strings, caption is None, statistics_of([sample]))


@dataclass(frozen=True)
class LoadedImage:
    """RGB pixels (H W 3, uint8), upright and downsized, with the size and orientation of the file."""

    pixels: np.ndarray
    stored_size: tuple[int, int]  # width, height in the file
    orientation: int  # EXIF's; 1: upright as stored

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height when upright, before downsizing."""
        width, height = self.stored_size
        return (height, width) if self.orientation >= 5 else (width, height)


def load_image(image: bytes | tuple[Path, ...], max_side_pixels: int) -> LoadedImage:
    """The image, downsized to `max_side_pixels`. Its size is checked from the header. Raises UnusableEntry."""
    try:
        opened = io.BytesIO(image) if isinstance(image, bytes) else _existing(image)
        # By content, not by extension: many a .jpg is a png.
        with Image.open(opened, formats=sorted(set(SOURCE_FORMATS.values()))) as opened_as:
            if opened_as.width * opened_as.height > MAX_IMAGE_PIXELS:
                raise UnusableEntry(
                    "over the limit of pixels", f"{opened_as.width} x {opened_as.height} are over 64 million"
                )
            shorter, longer = sorted(opened_as.size)
            if shorter < MIN_SIDE_PIXELS or longer > MAX_ASPECT * shorter:
                raise UnusableEntry(
                    "too small or too narrow",
                    f"{opened_as.width} x {opened_as.height} pixels; a side is under {MIN_SIDE_PIXELS}, or one is over"
                    f" {MAX_ASPECT} times the other",
                )
            size = opened_as.size
            orientation = orientation_of(opened_as)
            return LoadedImage(_upright_rgb(opened_as, max_side_pixels), size, orientation)
    except UnusableEntry:
        raise
    except Image.DecompressionBombError:
        raise UnusableEntry("over the limit of pixels", "over 64 million") from None
    except Image.UnidentifiedImageError:
        raise UnusableEntry(f"the file is damaged, or is none of {', '.join(SOURCE_FORMATS)}") from None
    except Exception as error:  # Pillow's plugins share no class for what they meet in damaged files
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnusableEntry("the image does not decode", reason) from None


def header_pixels(image: bytes | tuple[Path, ...], max_side_pixels: int) -> int:
    """The pixels of an image after downsizing, from its header; 0 where it is unreadable. Raises UnusableEntry."""
    opened = io.BytesIO(image) if isinstance(image, bytes) else _existing(image)
    try:
        with Image.open(opened, formats=sorted(set(SOURCE_FORMATS.values()))) as opened_as:
            shrunk = min(1.0, max_side_pixels / max(opened_as.size))
            return int(opened_as.width * opened_as.height * shrunk**2)
    except Exception:  # `load_image` says what is wrong
        return 0


def _existing(paths: tuple[Path, ...]) -> Path:
    """The first path that is a file. Raises UnusableEntry."""
    for path in paths:
        try:
            size = path.stat().st_size
        except (OSError, ValueError):  # ValueError: a name with a null byte
            continue
        if size == 0:
            raise UnusableEntry("the file is empty")
        if size > MAX_IMAGE_BYTES:
            raise UnusableEntry("the file is too large", f"over {MAX_IMAGE_BYTES // 1_000_000} MB")
        return path
    raise UnusableEntry("there is no such file", str(paths[0]))


def _upright_rgb(image: Image.Image, max_side_pixels: int) -> np.ndarray:
    image.draft(None, (2 * max_side_pixels, 2 * max_side_pixels))  # decodes a large jpg at a lower resolution
    upright = to_rgb(image)
    upright.thumbnail((max_side_pixels, max_side_pixels), Image.Resampling.LANCZOS)
    return np.asarray(upright)


def _lines_of(entry: Entry, loaded: LoadedImage, read_text: ReadText, tight: bool) -> tuple[TextLine, ...]:
    """The lines in reading order: the source's where it has text, else those of the OCR engine."""
    given = [line for line in entry.lines or () if line.text is not None]
    regions = [line for line in entry.lines or () if line.text is None]
    lines = [_relative(line, entry, loaded) for line in given]
    if entry.lines is None or regions:
        try:
            read = read_text(loaded.pixels)
        except Exception as error:
            raise UnusableEntry("the OCR engine fails on it", repr(error)[:200]) from error
        marked = [(region.valid, _relative(replace(region, text=""), entry, loaded)) for region in regions]
        ignored = tuple(line for valid, line in marked if not valid)
        for line in read:
            if _covered_share(line.polygon, ignored) >= MIN_COVERED_SHARE:
                lines.append(replace(line, valid=False))
            else:
                lines.append(_believed(line, loaded.pixels, tight))
        # Text that the source marks and the engine misses must not be learned as background.
        lines += [line for valid, line in marked if not valid or _covered_share(line.polygon, read) < MIN_COVERED_SHARE]
    height, width = loaded.pixels.shape[:2]
    visible = (line for line in lines if polygon_area(line.polygon) > 0)
    return tuple(_checked(line, height, width) for line in reading_order(visible))


def _believed(line: TextLine, pixels: np.ndarray, tight: bool) -> TextLine:
    """A line of an OCR engine, marked as invalid where it is unlikely to be what stands there.

    So are regions without text, marks alone (noise of a texture), upside-down text, a text that does not fit its
    region, and one letter for the whole image.
    """
    line = replace(line, text=" ".join(line.text.split()))
    (left, _), (right, _) = line.polygon[:2]
    if right < left or not any(map(str.isalnum, line.text)):
        return replace(line, valid=False)
    line = tighten_polygon(line, pixels) if tight else line
    whole = len(line.text) == 1 and polygon_area(line.polygon) > MAX_AREA_OF_ONE
    height, width = pixels.shape[:2]
    return line if _fits(line, width, height) and not whole else replace(line, valid=False)


def _fits(line: TextLine, width: int, height: int) -> bool:
    """Whether the text can be as long as its region, as far as a font of ours tells."""
    if script_of(line.text) not in (SIMPLE, *CJK) or missing_glyphs(line.text):
        return True
    left, top, right, bottom = load_font(font_for(line.text, PROPORTIONAL_FONT), 64).getmask(line.text).getbbox()
    natural = max(MIN_LETTER_ASPECT, (right - left) / (bottom - top))
    corners = np.array(quad_of(line.polygon)) * (width, height)
    across, down = (float(np.linalg.norm(corners[corner] - corners[0])) for corner in (1, 3))
    limit = MAX_STRETCH_OF_ONE if len(line.text) == 1 else MAX_STRETCH
    if down >= TALL_ASPECT * across:  # it runs up or down
        return True
    return bool(natural / limit <= across / max(down, 1e-6) <= natural * limit)


def _relative(line: SourceLine, entry: Entry, loaded: LoadedImage) -> TextLine:
    """The line with its polygon relative to the upright image, clipped to the image."""
    polygon: Polygon = _WHOLE_IMAGE
    if line.polygon is not None:
        width, height = entry.frame or loaded.stored_size
        # Some annotations are of the stored image, some of the upright one.
        upright = entry.frame == loaded.upright_size != loaded.stored_size
        turn = _TURNS.get(1 if upright else loaded.orientation, lambda x, y: (x, y))
        points = [turn(x / width, y / height) for x, y in line.polygon]
        if len(points) == 3:
            points = list(box_polygon(*bounding_box(tuple(points))))
        polygon = tuple((min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)) for x, y in points)
    return TextLine(
        line.text or "", polygon, line.language, valid=line.valid and bool(line.text), confidence=line.confidence
    )


def _covered_share(polygon: Polygon, lines: tuple[TextLine, ...]) -> float:
    """The share of a polygon's box that the boxes of lines cover, overlaps counted twice."""
    left, top, right, bottom = bounding_box(polygon)
    covered = 0.0
    for line in lines:
        other_left, other_top, other_right, other_bottom = bounding_box(line.polygon)
        width = min(right, other_right) - max(left, other_left)
        height = min(bottom, other_bottom) - max(top, other_top)
        covered += max(0.0, width) * max(0.0, height)
    area = (right - left) * (bottom - top)
    return covered / area if area > 0 else 1.0


def _checked(line: TextLine, height: int, width: int) -> TextLine:
    """The line, marked as invalid where its text or its direction is uncertain."""
    top_left, top_right, _, bottom_left = np.array(quad_of(line.polygon)) * (width, height)
    tall = np.linalg.norm(bottom_left - top_left) >= TALL_ASPECT * np.linalg.norm(top_right - top_left)
    doubtful = line.confidence is not None and line.confidence < MIN_CONFIDENCE
    return replace(line, valid=False) if doubtful or (tall and len(line.text) > 1) else line
