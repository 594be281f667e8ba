"""A plain folder of pictures -> samples.

    folder -> pictures, sorted -> header checked, decoded, turned upright, downsized -> text read -> caption -> Sample

The caption is the first line of `NAME.txt` beside the picture `NAME.jpg`, if there is one. Otherwise it is made of
the text that was read: `a picture that says "OPEN", "DAILY" and "9 TO 5"`, with the largest lines in reading order;
`a picture without text` where nothing was read; `a picture` where something was, but not legibly.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vlad.data.decoding import MAX_PICTURE_PIXELS, PICTURE_FORMATS
from vlad.data.parallel import map_in_order
from vlad.errors import UserError
from vlad.layout.polygons import polygon_area, quad_of
from vlad.layout.reading import reading_order
from vlad.records import Layout, Sample, TextLine

LEAST_CONFIDENCE = 0.5  # of the OCR engine; below it a line counts as not legible
# From this height over width on a line of several letters runs up or down, and the engine does not say which.
TALL_ASPECT = 1.5

# Less holds no text. A strip is crushed in training, and an OCR engine enlarges its shorter side: 32 x 1024 pixels
# take rapidocr 13 s and 2.8 GB.
MIN_SIDE_PIXELS = 32
MAX_ASPECT = 16

ReadText = Callable[[np.ndarray], tuple[TextLine, ...]]


@dataclass(frozen=True)
class FolderOptions:
    """How pictures become samples."""

    # Larger pictures are downsized until their longer side is this long.
    max_side_pixels: int = 1024
    # The most lines that a composed caption quotes.
    max_strings: int = 3

    def __post_init__(self) -> None:
        if self.max_side_pixels < 16 or self.max_strings < 1:
            raise UserError("A picture needs a max_side_pixels of at least 16, and max_strings at least 1.")


@dataclass(frozen=True)
class Skipped:
    """A picture that gives no sample, and why."""

    path: Path
    reason: str


class _Unusable(Exception):  # noqa: N818 - it never leaves this module
    """Why a picture cannot be used."""


def find_pictures(folder: Path | str) -> tuple[Path, ...]:
    """The pictures under a folder (jpg, jpeg, png, webp in any case), sorted by their path in it.

    Hidden files and folders are left out. Raises UserError when the folder is missing, is a file, cannot be read
    or holds no picture.
    """
    folder = Path(folder)
    known = ", ".join(PICTURE_FORMATS)
    if not folder.exists():
        raise UserError(f"There is no folder {folder}; name one that holds pictures ({known}).")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; name the folder that holds the pictures.")
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be read ({error.strerror}); give yourself permission to read it."
        ) from error
    found = [path for path in folder.rglob("*") if path.suffix[1:].lower() in PICTURE_FORMATS and not path.is_dir()]
    visible = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not visible:
        raise UserError(f"There are no pictures in {folder} or the folders below it; known are {known}.")
    return tuple(sorted(visible, key=lambda path: path.relative_to(folder).as_posix()))


def sample_keys(folder: Path | str, pictures: Sequence[Path]) -> tuple[str, ...]:
    """A key for every picture: its path in the folder without the extension, safe in a tar, each one unique.

    A key has no dot, since a shard splits `KEY.jpg` at the first one, and no slash. Pictures whose paths come out
    the same are told apart by a number.
    """
    used: set[str] = set()
    keys = []
    for path in pictures:
        stem = path.relative_to(folder).with_suffix("").as_posix()
        base = re.sub(r"[^\w-]+", "_", stem).strip("_") or "picture"
        key, number = base, 1
        while key in used:
            number += 1
            key = f"{base}-{number}"
        used.add(key)
        keys.append(key)
    return tuple(keys)


def import_pictures(
    pictures: Sequence[Path],
    keys: Sequence[str],
    read_text: ReadText,
    options: FolderOptions,
    workers: int | None = None,
) -> Iterator[Sample | Skipped]:
    """A sample, or the reason why not, for every picture, in order.

    `read_text` gives the lines of a picture (H W 3, uint8) with polygons in 0..1; it is called from `workers`
    threads (None: one a core).
    """

    def import_one(item: tuple[Path, str]) -> Sample | Skipped:
        return _import_picture(*item, read_text, options)

    return map_in_order(import_one, zip(pictures, keys, strict=True), workers)


def _import_picture(path: Path, key: str, read_text: ReadText, options: FolderOptions) -> Sample | Skipped:
    try:
        written = _written_caption(path.with_suffix(".txt"))
        picture = _load_picture(path, options.max_side_pixels)
    except _Unusable as error:
        return Skipped(path, str(error))
    lines = tuple(_checked(line, *picture.shape[:2]) for line in reading_order(read_text(picture)))
    return Sample(key, picture, written or compose_caption(lines, options.max_strings), Layout(lines))


def _load_picture(path: Path, max_side_pixels: int) -> np.ndarray:
    """RGB pixels (H W 3, uint8), upright and at most `max_side_pixels` long. The size is checked from the header."""
    try:
        if path.stat().st_size == 0:
            raise _Unusable("the file is empty")
        # By content, not by extension: many a .jpg in the wild is a png.
        with Image.open(path, formats=sorted(set(PICTURE_FORMATS.values()))) as picture:
            if picture.width * picture.height > MAX_PICTURE_PIXELS:
                raise _Unusable(f"{picture.width} x {picture.height} pixels are over the limit of {MAX_PICTURE_PIXELS}")
            shorter, longer = sorted(picture.size)
            if shorter < MIN_SIDE_PIXELS or longer > MAX_ASPECT * shorter:
                raise _Unusable(
                    f"{picture.width} x {picture.height} pixels: a side is under {MIN_SIDE_PIXELS}, or one is over"
                    f" {MAX_ASPECT} times the other"
                )
            return _upright_rgb(picture, max_side_pixels)
    except Image.DecompressionBombError:
        raise _Unusable(f"its pixels are over the limit of {MAX_PICTURE_PIXELS}") from None
    except Image.UnidentifiedImageError:
        raise _Unusable("the file is damaged, or is no jpg, png or webp") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _Unusable(f"it does not decode: {reason}") from error


def _upright_rgb(picture: Image.Image, max_side_pixels: int) -> np.ndarray:
    picture.draft(None, (2 * max_side_pixels, 2 * max_side_pixels))  # a large jpg is read at a lower resolution
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    if upright.has_transparency_data:
        # What shows through is white paper, not the black that is stored under it.
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    upright = upright.convert("RGB")
    upright.thumbnail((max_side_pixels, max_side_pixels), Image.Resampling.LANCZOS)
    return np.asarray(upright)


def _written_caption(path: Path) -> str | None:
    """The first line of a caption file, None where there is no file or the line is empty."""
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise _Unusable(f"its caption {path.name} is not UTF-8 text") from None
    except OSError as error:
        raise _Unusable(f"its caption {path.name} cannot be read: {error.strerror}") from error
    return " ".join(lines[0].split()) or None if lines else None


def _checked(line: TextLine, height: int, width: int) -> TextLine:
    """The line, marked as not valid where what it says, or which way it runs, is not certain."""
    top_left, top_right, _, bottom_left = np.array(quad_of(line.polygon)) * (width, height)
    tall = np.linalg.norm(bottom_left - top_left) >= TALL_ASPECT * np.linalg.norm(top_right - top_left)
    doubtful = line.confidence is not None and line.confidence < LEAST_CONFIDENCE
    return replace(line, valid=False) if doubtful or (tall and len(line.text) > 1) else line


def compose_caption(lines: Sequence[TextLine], max_strings: int) -> str:
    """A caption that quotes the `max_strings` largest valid lines, in the order given, whole.

    Double quotation marks around a line go, and those inside become single ones: they would end the quotation.
    """
    largest = sorted((line for line in lines if line.valid), key=lambda line: -polygon_area(line.polygon))
    chosen = [line for line in lines if any(line is other for other in largest[:max_strings])]
    quoted = [f'"{text}"' for text in map(_quotable, chosen) if text]
    if not quoted:
        return "a picture" if lines else "a picture without text"
    listed = quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
    return f"a picture that says {listed}"


def _quotable(line: TextLine) -> str:
    return " ".join(line.text.strip('" ').replace('"', "'").split())
