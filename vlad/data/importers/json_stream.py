"""Streaming the objects of a list in a JSON file of any size.

    [{...}, {...}]   or   {"data_root": "...", "data_list": [{...}, {...}], ...}

Only brackets and quotation marks are scanned here; an object is parsed where it is used, on any core. Memory: one
object and a megabyte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vlad.data.importers.sources import (
    ImageRef,
    UnusableEntry,
    safe_key,
)
from vlad.utils.errors import UserError

CHUNK_BYTES = 1 << 20
MAX_OBJECT_BYTES = 64_000_000
MAX_DEPTH = 32
_BRACKET_OR_STRING = re.compile(rb'["{}\[\]]')
_END_OF_STRING = re.compile(rb'["\\]')
_END_OF_SCALAR = re.compile(rb"[,\]}\s]")
_NOT_SPACE = re.compile(rb"[^ \t\r\n]")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class JSONObject:
    """The bytes of one object, its number in the list and its line in the file, both from 1."""

    number: int
    line: int
    data: bytes
    share: float  # position of its end in the file, 0..1

    def parse(self) -> dict[str, Any]:
        """The parsed object. Raises UnusableEntry where it is not JSON."""
        return parse_object(self.data)


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object from its bytes. Raises UnusableEntry."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnusableEntry("its entry is not JSON", str(error)[:100]) from None
    if not isinstance(record, dict):
        raise UnusableEntry("its entry is no JSON object")
    return record


def read_header(path: Path, list_name: str) -> dict[str, Any]:
    """The values before the list `list_name` in a file's top object. Raises UserError."""
    with path.open("rb") as stream:
        header: dict[str, Any] = {}
        _Reader(stream, path).enter_list(list_name, header)
        return header


def stream_objects(path: Path, list_name: str | None = None) -> Iterator[JSONObject]:
    """The objects of a file's top list, or of the list `list_name` in its top object.

    Raises UserError with the line where the file is not such JSON, or ends too early.
    """
    size = max(1, path.stat().st_size)
    with path.open("rb") as stream:
        reader = _Reader(stream, path)
        if list_name is None:
            reader.expect(b"[", "a list of entries")
        else:
            reader.enter_list(list_name, {})
        number = 0
        while reader.peek() != b"]" or number:
            number += 1
            line = reader.line_here()
            if reader.peek() != b"{":
                raise reader.error(f"entry {number} is no object in curly brackets")
            data = reader.value(f"entry {number}")
            yield JSONObject(number, line, data, min(1.0, reader.offset() / size))
            if reader.peek() == b"]":
                break
            reader.expect(b",", f"a comma or a bracket after entry {number}")


class _Reader:
    """A position in a JSON file."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream, self._path = stream, path
        self._buffer, self._at = b"", 0
        self._dropped_bytes, self._dropped_lines = 0, 0
        self._counted, self._lines_to_counted = 0, 0  # in the buffer
        self._fill()
        if self._buffer.startswith(_BYTE_ORDER_MARK):
            self._at = len(_BYTE_ORDER_MARK)

    def _fill(self) -> bool:
        """Reads the next chunk, and drops what was consumed. False at the end of the file."""
        chunk = self._stream.read(CHUNK_BYTES)
        if not chunk:
            return False
        self._dropped_lines += self._buffer.count(b"\n", 0, self._at)
        self._dropped_bytes += self._at
        self._buffer = self._buffer[self._at :] + chunk
        self._at = self._counted = self._lines_to_counted = 0
        return True

    def offset(self) -> int:
        return self._dropped_bytes + self._at

    def line_here(self) -> int:
        """The line of the position; line ends are counted once."""
        self._lines_to_counted += self._buffer.count(b"\n", self._counted, self._at)
        self._counted = self._at
        return 1 + self._dropped_lines + self._lines_to_counted

    def error(self, reason: str) -> UserError:
        return UserError(f"{self._path}, line {self.line_here()}: {reason}; fix the file, or get it again.")

    def peek(self) -> bytes:
        """The next byte that is not white space."""
        while True:
            match = _NOT_SPACE.search(self._buffer, self._at)
            if match is not None:
                self._at = match.start()
                return match.group()
            self._at = len(self._buffer)
            if not self._fill():
                raise self.error("the file ends here, in the middle of its JSON")

    def expect(self, byte: bytes, what: str) -> None:
        if self.peek() != byte:
            raise self.error(f"expected {what}, not {self._buffer[self._at : self._at + 20]!r}")
        self._at += 1

    def enter_list(self, name: str, header: dict[str, Any]) -> None:
        """Moves to the first entry of a list in the top object; values before it go to `header`."""
        self.expect(b"{", f'an object with a list "{name}"')
        while self.peek() != b"}":
            if self.peek() != b'"':
                raise self.error("expected a field's name in quotation marks")
            field = self._parsed(self.value("a field's name"))
            self.expect(b":", f"a colon after {field!r}")
            if field == name:
                self.expect(b"[", f'a list as "{name}"')
                return
            header[field] = self._parsed(self.value(f'field "{field}"'))
            if self.peek() != b"}":
                self.expect(b",", f'a comma after field "{field}"')
        raise self.error(f'the file has no list "{name}"')

    def _parsed(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self.error(f"not JSON ({error})") from error

    def value(self, what: str) -> bytes:
        """The bytes of the next value, whole."""
        self.peek()
        start = self._at
        in_string, depth, at = False, 0, start
        scalar = self._buffer[start : start + 1] not in (b"{", b"[", b'"')
        while True:
            pattern = _END_OF_SCALAR if scalar else _END_OF_STRING if in_string else _BRACKET_OR_STRING
            match = pattern.search(self._buffer, at)
            if match is None:
                at = max(at, len(self._buffer)) - start
                if at > MAX_OBJECT_BYTES:
                    raise self.error(f"{what} is over {MAX_OBJECT_BYTES // 1_000_000} MB long")
                if not self._fill():
                    raise self.error(f"the file ends inside of {what}")
                start = 0  # the buffer begins with the value now
                continue
            byte, at = match.group(), match.end()
            if scalar:
                at = match.start()
            elif in_string:
                at += byte == b"\\"  # the escaped byte is no mark
                in_string = byte != b'"'
            elif byte == b'"':
                in_string = True
            else:
                depth += 1 if byte in b"{[" else -1
                if depth > MAX_DEPTH:
                    raise self.error(f"{what} is nested more than {MAX_DEPTH} deep")
            if depth == 0 and not in_string:
                data = self._buffer[start:at]
                self._at = at
                return data


def json_refs(path: Path, list_name: str | None) -> Iterator[ImageRef]:
    """A reference to every object of a list in a JSON file, with the JSONObject as payload."""
    stem = safe_key(path.stem)
    for item in stream_objects(path, list_name):
        yield json_ref(stem, path, item)


def json_ref(stem: str, path: Path, item: JSONObject) -> ImageRef:
    """The reference to one object, keyed by its number: it is not parsed yet."""
    name = f"{path.name}, entry {item.number} (line {item.line})"
    return ImageRef(item.number - 1, f"{stem}_{item.number - 1:08d}", name, item, item.share)


def list_of(record: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """The list of objects in a field, empty where the field is missing. Raises UnusableEntry."""
    values = record.get(field)
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise UnusableEntry(f'field "{field}" is no list of objects')
    return values
