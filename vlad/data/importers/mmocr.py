"""mmocr JSON for ICDAR and similar sets, and wildreceipt's JSON lines.

    {"metainfo": ..., "data_list": [{"img_path", "instances": [{"polygon" | "bbox", "text"?, "ignore"?}]}]}
    {"file_name", "height", "width", "annotations": [{"box": [8 numbers], "text", "label"}]}      one image per line

An instance without text (detection sets) is read by an OCR engine; one without a polygon (word crops) covers the whole
image. Neither format has captions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlad.data.importers.json_stream import MAX_OBJECT_BYTES, JSONObject, json_ref, json_refs, list_of
from vlad.data.importers.sources import (
    Entry,
    ImageRef,
    SourceLine,
    UnusableEntry,
    candidate_paths,
    from_top_left,
    points_of,
    required_text,
    safe_key,
    text_of,
)
from vlad.utils.errors import UserError
from vlad.utils.passed_over import PassedOver

IGNORED_LABEL = 0  # of wildreceipt's 26 classes
ILLEGIBLE = ("###", "*")  # the text of illegible words in ICDAR


class MMOCRSource:
    """The images of an mmocr annotation file."""

    format = "mmocr"

    def __init__(self, path: Path, images: Path | None = None) -> None:
        self.path = str(path)
        self.count: int | None = None
        self.passed_over = PassedOver()
        self._file = path
        self._folders = (path.parent, path.parent / "imgs") if images is None else (images,)

    def refs(self) -> Iterator[ImageRef]:
        """A reference to every image."""
        return json_refs(self._file, "data_list")

    def read(self, ref: ImageRef) -> Entry:
        """The image with its lines. Raises UnusableEntry that names the field."""
        record = ref.payload.parse()
        name = required_text(record, "img_path")
        lines = tuple(_mmocr_line(instance) for instance in list_of(record, "instances"))
        return Entry(candidate_paths(self._folders, name), None, lines, _frame(record), source=name)


class WildReceiptSource:
    """The receipts of a wildreceipt annotation file."""

    format = "wildreceipt"

    def __init__(self, path: Path, images: Path | None = None) -> None:
        self.path = str(path)
        self._file = path
        self._folders = (path.parent,) if images is None else (images,)
        self.count: int | None = sum(1 for _ in self.refs())
        self.passed_over = PassedOver()

    def refs(self) -> Iterator[ImageRef]:
        """A reference to every line. Raises UserError for a line that is no JSON object."""
        stem, number = safe_key(self._file.stem), 0
        with self._file.open("rb") as stream:
            for line, data in enumerate(iter(lambda: stream.readline(MAX_OBJECT_BYTES), b""), start=1):
                if not data.strip():
                    continue
                if data.lstrip()[:1] != b"{":
                    raise UserError(f"{self._file}, line {line} is no JSON object; fix the line, or remove it.")
                number += 1
                yield json_ref(stem, self._file, JSONObject(number, line, data, 0.0))

    def read(self, ref: ImageRef) -> Entry:
        """The receipt with its lines. Raises UnusableEntry that names the field."""
        record = ref.payload.parse()
        name = required_text(record, "file_name")
        lines = tuple(_receipt_line(entry) for entry in list_of(record, "annotations"))
        return Entry(candidate_paths(self._folders, name), None, lines, _frame(record), source=name)


def _mmocr_line(instance: dict[str, Any]) -> SourceLine:
    polygon = None
    if instance.get("polygon") is not None:
        polygon = from_top_left(points_of(instance["polygon"], "polygon"))
    elif instance.get("bbox") is not None:
        polygon = _box(instance["bbox"])
    text = text_of(instance, "text")
    valid = not instance.get("ignore", False) and text not in ILLEGIBLE
    if text is None and polygon is None:
        raise UnusableEntry("an instance has neither text nor polygon")
    return SourceLine(text, polygon, valid=valid)


def _receipt_line(entry: dict[str, Any]) -> SourceLine:
    points = from_top_left(points_of(entry.get("box"), "box"))
    return SourceLine(text_of(entry, "text") or "", points, valid=entry.get("label") != IGNORED_LABEL)


def _box(value: Any) -> tuple[tuple[float, float], ...]:
    try:
        left, top, right, bottom = (float(number) for number in value)
    except (TypeError, ValueError, OverflowError):
        raise UnusableEntry('field "bbox" is no box', repr(value)[:60]) from None
    return points_of([(left, top), (right, top), (right, bottom), (left, bottom)], "bbox")


def _frame(record: dict[str, Any]) -> tuple[float, float] | None:
    """The image size of the annotation, None where it has none."""
    width, height = record.get("width"), record.get("height")
    if width is None or height is None:
        return None
    if not all(isinstance(value, int | float) and 0 < value < 1e6 for value in (width, height)):
        raise UnusableEntry('fields "width" and "height" are no size', f"{width!r} x {height!r}"[:60])
    return float(width), float(height)
