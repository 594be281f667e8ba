"""AnyWord-3M JSON (AnyText), and that of the AnyText benchmark.

    {"data_root"?, "data_list": [{"img_name", "caption", "annotations": [{"polygon", "text", "language", "valid"}]}]}

Polygons are in pixels of the image resized to 512 x 512; their corners begin anywhere. `valid: false` marks illegible
text. The images are in `data_root`, or in a folder that the user names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlad.data.importers.json_stream import json_refs, list_of, read_header
from vlad.data.importers.sources import (
    Entry,
    ImageRef,
    SourceLine,
    candidate_paths,
    from_top_left,
    points_of,
    required_text,
    text_of,
)
from vlad.utils.passed_over import PassedOver

FRAME_PIXELS = (512.0, 512.0)
LIST = "data_list"


class AnyWordSource:
    """The entries of one subset's JSON."""

    format = "anyword"

    def __init__(self, path: Path, images: Path | None = None, caption_field: str | None = None) -> None:
        self.path = str(path)
        self.count: int | None = None
        self.passed_over = PassedOver()
        self._file, self._caption_field = path, caption_field or "caption"
        self._folders: tuple[Path, ...] = (path.parent, path.parent / "imgs")
        if images is not None:
            self._folders = (images,)
        elif isinstance(root := read_header(path, LIST).get("data_root"), str):
            self._folders = (path.parent / root, *self._folders)

    def refs(self) -> Iterator[ImageRef]:
        """A reference to every entry."""
        return json_refs(self._file, LIST)

    def read(self, ref: ImageRef) -> Entry:
        """The image, caption and lines of an entry. Raises UnusableEntry that names the field."""
        record = ref.payload.parse()
        name = required_text(record, "img_name")
        annotations = list_of(record, "annotations")
        return Entry(
            candidate_paths(self._folders, name),
            text_of(record, self._caption_field),
            tuple(_line(annotation) for annotation in annotations),
            FRAME_PIXELS,
            source=name,
        )


def _line(annotation: dict[str, Any]) -> SourceLine:
    points = points_of(annotation.get("polygon"), "polygon")
    text = text_of(annotation, "text") or ""
    valid = annotation.get("valid", True) is not False
    return SourceLine(text, from_top_left(points), text_of(annotation, "language"), valid)
