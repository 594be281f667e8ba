"""The interface of image sources, and the records that importers hand on.

    source.refs() -> ImageRef -> source.read(ref) -> Entry -> annotate -> Sample, or Skipped with its reason

`refs` runs in one process, in the source's order, and does little per image; `read` does the rest and runs anywhere:
on all cores, or on the machines of a cluster.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vlad.types import ObjectBox
from vlad.utils.passed_over import PassedOver

MAX_SMALL_FILE_BYTES = 4_000_000


class UnusableEntry(ValueError):  # noqa: N818 - one image is skipped: no error of the program
    """Why one image gives no sample: `kind` is a few words by which the summary counts, then come the details."""

    def __init__(self, kind: str, details: str = "") -> None:
        super().__init__(f"{kind}: {details}" if details else kind)


@dataclass(frozen=True)
class ImageRef:
    """A reference to an image in its source; it can be pickled."""

    number: int  # in the source's order, from 0
    key: str  # of the sample: unique in the source, without dots and slashes
    name: str  # for messages: a path, or a file and the number of an entry
    payload: Any = None  # whatever the source needs to read the entry
    # The position in the source, 0..1; None where the source knows its number of images.
    share: float | None = None


@dataclass(frozen=True)
class SourceLine:
    """A line of text as a source annotates it, in pixels of `Entry.frame`.

    `text` is None where the source marks the position of text, but not what it says. `polygon` None: the whole image.
    """

    text: str | None
    polygon: tuple[tuple[float, float], ...] | None
    language: str | None = None
    valid: bool = True
    confidence: float | None = None


@dataclass(frozen=True)
class Entry:
    """One image of a source with its annotations.

    `image` is the file's bytes, or the paths at which it may be: the first that exists counts.
    """

    image: bytes | tuple[Path, ...]
    caption: str | None = None  # None: the source has none
    # None: the source has no lines of text, and an OCR engine reads them.
    lines: tuple[SourceLine, ...] | None = None
    # Width and height that the polygons refer to; None: those of the stored image.
    frame: tuple[float, float] | None = None
    objects: tuple[ObjectBox, ...] = ()
    source: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Skipped:
    """An image that gives no sample, and why: "kind: details"."""

    name: str
    reason: str

    @property
    def kind(self) -> str:
        """The reason without its details."""
        return self.reason.partition(": ")[0]


class Source(Protocol):
    """Images of one format. It can be pickled, and gives the same references each time."""

    format: str
    path: str  # as the user named it
    # The number of images; None where counting takes as long as reading.
    count: int | None
    # What the source holds besides its images and captions; empty where it does not say.
    passed_over: PassedOver

    def refs(self) -> Iterator[ImageRef]:
        """Every image, in order. Raises UserError where the source itself is broken."""

    def read(self, ref: ImageRef) -> Entry:
        """The image with its annotations. Raises UnusableEntry."""


def read_small_file(path: Path) -> bytes | None:
    """The contents of a file beside an image, None where there is none.

    Raises UnusableEntry for one that cannot be read, or is too long for what its name says.
    """
    try:
        if not path.is_file():
            return None
        with path.open("rb") as stream:
            data = stream.read(MAX_SMALL_FILE_BYTES + 1)
    except OSError as error:
        raise UnusableEntry(f"{path.name} cannot be read", error.strerror or "") from error
    if len(data) > MAX_SMALL_FILE_BYTES:
        raise UnusableEntry(f"{path.name} is too large", f"over {MAX_SMALL_FILE_BYTES // 1_000_000} MB")
    return data


class UniqueKeys:
    """Makes keys that are safe in a tar and unique."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def key_of(self, name: str) -> str:
        """`name` without slashes, and dots, which end a key in a shard; with a number where it is taken already."""
        base = safe_key(name)
        key, number = base, 1
        while key in self._used:
            number += 1
            key = f"{base}-{number}"
        self._used.add(key)
        return key


def safe_key(name: str) -> str:
    """`name` as letters, digits, underscores and dashes."""
    return re.sub(r"[^\w-]+", "_", name).strip("_") or "image"


def text_of(record: dict[str, Any], field: str) -> str | None:
    """A field's text on one line; None where it is missing, null or blank. Raises UnusableEntry for another type."""
    value = record.get(field)
    if value is None:
        return None
    if not isinstance(value, str):
        raise UnusableEntry(f'field "{field}" is not text', repr(value)[:60])
    return " ".join(value.split()) or None


def required_text(record: dict[str, Any], field: str) -> str:
    """A field's text. Raises UnusableEntry where there is none."""
    text = text_of(record, field)
    if text is None:
        raise UnusableEntry(f'field "{field}" is missing')
    return text


def points_of(value: Any, field: str) -> tuple[tuple[float, float], ...]:
    """Points from [[x, y], ...] or [x, y, x, y, ...]. Raises UnusableEntry."""
    try:
        if value and not isinstance(value[0], list | tuple):
            value = list(zip(value[::2], value[1::2], strict=True))
        points = tuple((float(x), float(y)) for x, y in value)
    except (TypeError, ValueError, OverflowError, KeyError):
        raise UnusableEntry(f'field "{field}" is no list of points', repr(value)[:60]) from None
    if len(points) < 3 or not all(abs(number) < 1e9 for point in points for number in point):
        raise UnusableEntry(f'field "{field}" is no list of three points or more', repr(value)[:60])
    return points


def from_top_left(points: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    """The corners clockwise, those of a quad from the one at which its most level edge to the right begins.

    For annotations whose corners begin anywhere and run either way round; upside-down text is not recognised as such.
    A polygon of more points is made clockwise, and no more.
    """
    following = (*points[1:], points[0])
    doubled_area = sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in zip(points, following, strict=True))
    if doubled_area < 0:  # y runs downwards: clockwise is positive
        points = points[::-1]
    if len(points) != 4:
        return points

    def levelness(start: int) -> float:
        (x, y), (next_x, next_y) = points[start], points[(start + 1) % 4]
        return (next_x - x) / (math.hypot(next_x - x, next_y - y) or 1)

    first = max(range(4), key=levelness)
    return points[first:] + points[:first]


def candidate_paths(folders: tuple[Path, ...], name: str) -> tuple[Path, ...]:
    """The paths at which an image of an annotation file may be: in each folder, with less and less of the name's start.

    Annotation files outlive the folders that they were made in. Raises UnusableEntry for a name that leads out of them.
    """
    parts = [part for part in re.split(r"[\\/]+", name) if part not in ("", ".")]
    if not parts or ".." in parts:
        raise UnusableEntry("its name leads out of the folder", name[:100])
    return tuple(folder.joinpath(*parts[start:]) for start in range(len(parts)) for folder in folders)
