"""MARIO-LAION folders (TextDiffuser): 06269/062690093/ with image.jpg, caption.txt, ocr.txt, info.json.

`ocr.txt` has one word per line, `text x1,y1,x2,y2,x3,y3,x4,y4 confidence`, in pixels of the 512 x 512 image.
The source is the folder, or an index file (lines of `06269_062690093`) with the folders beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from vlad.data.importers.folder import read_caption_file
from vlad.data.importers.sources import (
    Entry,
    ImageRef,
    SourceLine,
    UnusableEntry,
    points_of,
    read_small_file,
)
from vlad.utils.errors import UserError
from vlad.utils.passed_over import PassedOver
from vlad.utils.text_lines import split_lines

INDEX_LINE = re.compile(r"\s*(\d{5})_(\d{9})\s*")
FRAME_PIXELS = (512.0, 512.0)


class MarioSource:
    """The samples of a MARIO-LAION folder, sorted, or of an index file, in its order.

    Raises UserError where there are none, or a line of the index is wrong.
    """

    format = "mario"

    def __init__(self, path: Path, images: Path | None = None) -> None:
        self.path = str(path)
        self._index = path if path.is_file() else None
        self._folder = images or (path if path.is_dir() else path.parent)
        self.count: int | None = sum(1 for _ in self.refs())
        self.passed_over = PassedOver()
        if not self.count:
            raise UserError(f"There are no MARIO-LAION samples in {path}; they are in folders like 06269/062690093/.")

    def refs(self) -> Iterator[ImageRef]:
        """A reference to every sample."""
        seen: set[int] = set()
        number = 0
        for group, name in self._samples():
            if int(group + name) not in seen:  # an index may name a sample twice
                seen.add(int(group + name))
                yield ImageRef(number, f"{group}_{name}", f"{group}/{name}", (group, name))
                number += 1

    def read(self, ref: ImageRef) -> Entry:
        """The files of a sample; what a missing one would say stays unknown. Raises UnusableEntry."""
        folder = self._folder.joinpath(*ref.payload)
        try:
            if not folder.is_dir():
                raise UnusableEntry("its folder is missing")
        except OSError as error:
            raise UnusableEntry("its folder cannot be read", error.strerror or "") from error
        source, licence = _source_and_licence(folder / "info.json")
        return Entry(
            (folder / "image.jpg",),
            read_caption_file(folder / "caption.txt"),
            _read_lines(folder / "ocr.txt"),
            FRAME_PIXELS,
            source=source,
            licence=licence,
        )

    def _samples(self) -> Iterator[tuple[str, str]]:
        if self._index is None:
            for group in _names(self._folder, r"\d{5}"):
                yield from ((group, name) for name in _names(self._folder / group, r"\d{9}"))
            return
        with self._index.open(encoding="utf-8", errors="replace") as stream:
            for number, line in enumerate(stream, start=1):
                match = INDEX_LINE.fullmatch(line)
                if match is not None:
                    yield match[1], match[2]
                elif line.strip():
                    raise UserError(
                        f"{self._index}, line {number} is no entry like 06269_062690093: {line.strip()[:40]!r}."
                    )


def _names(folder: Path, pattern: str) -> list[str]:
    """The names in a folder that match, sorted. Raises UserError for a folder that cannot be read."""
    try:
        return sorted(path.name for path in folder.iterdir() if re.fullmatch(pattern, path.name))
    except NotADirectoryError:
        return []
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be read ({error.strerror}); give yourself permission to read it, or move it"
            " away."
        ) from error


def looks_like_mario(folder: Path) -> bool:
    """Whether a folder holds folders like 06269/062690093."""
    groups = (path for path in folder.iterdir() if re.fullmatch(r"\d{5}", path.name) and path.is_dir())
    return any(re.fullmatch(r"\d{9}", path.name) for group in groups for path in group.iterdir())


def _read_lines(path: Path) -> tuple[SourceLine, ...] | None:
    data = read_small_file(path)
    if data is None:
        return None
    lines = []
    try:
        for number, line in enumerate(split_lines(data.decode("utf-8-sig")), start=1):
            if not line.strip():
                continue
            try:
                text, corners, confidence = line.rsplit(" ", 2)
                points = points_of([float(value) for value in corners.split(",")], "corners")
                lines.append(SourceLine(text.strip(), points, confidence=float(confidence)))
            except ValueError:
                raise UnusableEntry("ocr.txt is wrong", f"line {number}: {line[:60]!r}") from None
    except UnicodeDecodeError:
        raise UnusableEntry("ocr.txt is not UTF-8 text") from None
    return tuple(lines)


def _source_and_licence(path: Path) -> tuple[str | None, str | None]:
    """The URL of an image and its licence; None where it is not known."""
    data = read_small_file(path)
    if data is None:
        return None, None
    try:
        record = json.loads(data)
        source, licence = record.get("url"), record.get("LICENSE")
    except (ValueError, AttributeError, RecursionError):
        raise UnusableEntry("info.json is no JSON object") from None
    known = licence if isinstance(licence, str) and licence.strip("? ") else None
    return source if isinstance(source, str) else None, known
