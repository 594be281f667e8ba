"""LAION-Glyph JSON (GlyphControl): one list of about 100 GB with the images in it, read as a stream.

[{"img_id", "img_code": base64, "caption_origin", "caption_blip",
  "ocr_info": [[[4 points], [text, confidence]], ...]}, ...]
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlad.data.importers.json_stream import json_refs
from vlad.data.importers.sources import Entry, ImageRef, SourceLine, UnusableEntry, points_of, text_of
from vlad.utils.passed_over import PassedOver

CAPTION_FIELDS = ("caption_blip", "caption_origin")


class LAIONGlyphSource:
    """The entries of a LAION-Glyph file. `caption_field` None: the first of CAPTION_FIELDS that an entry has."""

    format = "laion_glyph"

    def __init__(self, path: Path, caption_field: str | None = None) -> None:
        self.path = str(path)
        self.count: int | None = None
        self.passed_over = PassedOver()
        self._file = path
        self._fields = CAPTION_FIELDS if caption_field is None else (caption_field,)

    def refs(self) -> Iterator[ImageRef]:
        """A reference to every entry."""
        return json_refs(self._file, None)

    def read(self, ref: ImageRef) -> Entry:
        """The image, caption and lines of an entry. Raises UnusableEntry that names the field."""
        record = ref.payload.parse()
        code = record.get("img_code")
        if not isinstance(code, str) or not code:
            raise UnusableEntry('field "img_code" is missing')
        try:
            image = base64.b64decode(code, validate=True)
        except (binascii.Error, ValueError):
            raise UnusableEntry('field "img_code" is not base64') from None
        captions = (text_of(record, field) for field in self._fields)
        found = record.get("ocr_info")
        lines = None if found is None else tuple(_line(entry) for entry in _list(found))
        source = record.get("img_id")
        return Entry(
            image,
            next(filter(None, captions), None),
            lines,
            source=None if source is None else str(source)[:200],
        )


def _list(found: Any) -> list[Any]:
    if not isinstance(found, list):
        raise UnusableEntry('field "ocr_info" is no list')
    return found


def _line(entry: Any) -> SourceLine:
    try:
        points, (text, confidence) = entry
        text, confidence = str(text), float(confidence)
    except (TypeError, ValueError, OverflowError):
        raise UnusableEntry('field "ocr_info" holds no [points, [text, confidence]]', repr(entry)[:60]) from None
    return SourceLine(" ".join(text.split()), points_of(points, "ocr_info"), confidence=confidence)
