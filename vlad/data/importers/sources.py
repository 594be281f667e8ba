"""What the importers hand each other.

    source.places() -> Place -> source.read(place) -> Entry -> annotate -> Sample, or Skipped with its reason

`places` runs in one process, in the source's order, and does little an image; `read` does the rest and runs
anywhere: on all cores, or on the machines of a cluster.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vlad.types import ObjectBox

MAX_SMALL_FILE_BYTES = 4_000_000


class UnusableEntry(ValueError):  # noqa: N818 - it is about one image, which the others go on without
    """Why one image gives no sample: `kind` in a few words that the summary counts by, then the details."""

    def __init__(self, kind: str, details: str = "") -> None:
        super().__init__(f"{kind}: {details}" if details else kind)


@dataclass(frozen=True)
class Place:
    """Where an image stands in its source; it can be pickled."""

    number: int  # in the source's order, from 0
    key: str  # of the sample: unique in the source, without dots and slashes
    name: str  # as people find it again: a path, or a file and an entry's number
    payload: Any = None  # what the source needs to read the entry
    # How far into the source the place is, 0..1; None where the source counts its places.
    share: float | None = None


@dataclass(frozen=True)
class SourceLine:
    """A line of text as a source gives it, in pixels of `Entry.frame`.

    `text` None: the source marks where text stands, and not what it says. `polygon` None: the whole image.
    """

    text: str | None
    polygon: tuple[tuple[float, float], ...] | None
    language: str | None = None
    valid: bool = True
    confidence: float | None = None


@dataclass(frozen=True)
class Entry:
    """What a source says about one image.

    `image` is the file's bytes, or the paths at which it may lie: the first that exists counts.
    """

    image: bytes | tuple[Path, ...]
    caption: str | None = None  # None: the source has none
    # None: the source does not say where text stands, and an OCR engine has to.
    lines: tuple[SourceLine, ...] | None = None
    # Width and height in which the polygons are given; None: the image's own as stored.
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
    """Images of one format. It can be pickled, and gives the same places each time."""

    format: str
    path: str  # as the user named it
    # The number of places; None where counting takes as long as reading.
    count: int | None

    def places(self) -> Iterator[Place]:
        """Every image, in order. Raises UserError where the source itself is broken."""

    def read(self, place: Place) -> Entry:
        """What the source says about the image. Raises UnusableEntry."""


def small_file(path: Path) -> bytes | None:
    """What a file beside an image holds, None where there is none. Raises UnusableEntry for one that cannot be read.

    A longer one than MAX_SMALL_FILE_BYTES is not what it is called.
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
    """Keys that are safe in a tar and unlike each other."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def key_of(self, name: str) -> str:
        """`name` without dots, which end a key in a shard, and slashes; with a number where it was given before."""
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
    """The corners clockwise, a quad's from the one at which its most level edge to the right begins.

    For annotations whose corners begin anywhere and run either way round; text that stands upside down is not told
    from text that does not. A polygon of more points keeps its edges: the upper one first.
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


def below(folders: tuple[Path, ...], name: str) -> tuple[Path, ...]:
    """Where an image may lie that an annotation file names: the name, less and less of its beginning, in each folder.

    Annotations travel further than the folders they were made in. Raises UnusableEntry for a name that climbs out.
    """
    parts = [part for part in re.split(r"[\\/]+", name) if part not in ("", ".")]
    if not parts or ".." in parts:
        raise UnusableEntry("its name leads out of the folder", name[:100])
    return tuple(folder.joinpath(*parts[start:]) for start in range(len(parts)) for folder in folders)
