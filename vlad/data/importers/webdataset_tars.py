"""WebDataset tars of images with captions: KEY.jpg with KEY.txt, or with a caption in KEY.json.

Other members are ignored; so are absolute names, names that lead out of the archive, links, and everything else that is
not a file. Shards of our own schema keep their lines.
"""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Self

from vlad.data.decoding import IMAGE_FORMATS
from vlad.data.importers.json_stream import parse_object
from vlad.data.importers.sources import Entry, ImageRef, PassedOver, SourceLine, UniqueKeys, UnusableEntry, text_of
from vlad.data.shards.tar_index import MAX_HEADER_BYTES
from vlad.layout.layout_files import layout_from_json
from vlad.utils.errors import UserError

CAPTION_FIELDS = ("caption", "text", "prompt")
MAX_MEMBER_BYTES = 64_000_000
TWICE = "twice"  # among the members of a sample: the kind that it has two of
_LONG_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class TarSource:
    """The samples of tar files, in the tars' order. Raises UserError for a broken tar, and where there is none."""

    format = "webdataset"

    def __init__(self, path: str, tars: tuple[Path, ...], caption_field: str | None = None) -> None:
        self.path = path
        self.count: int | None = None
        self.passed_over: PassedOver | None = None
        self._tars = tars
        self._fields = CAPTION_FIELDS if caption_field is None else (caption_field,)
        self._field_is_given = caption_field is not None

    def refs(self) -> Iterator[ImageRef]:
        """A reference to every sample that has an image."""
        keys, number = UniqueKeys(), 0
        total = max(1, sum(path.stat().st_size for path in self._tars))
        before = 0
        for path in self._tars:
            for stem, members, end in _samples(path):
                if any(extension in members for extension in IMAGE_FORMATS):
                    name = f"{path.name}: {stem}"
                    yield ImageRef(number, keys.key_of(stem), name, members, min(1.0, (before + end) / total))
                    number += 1
            before += path.stat().st_size

    def read(self, ref: ImageRef) -> Entry:
        """The image and caption of a sample. Raises UnusableEntry."""
        members = ref.payload
        if TWICE in members:
            raise UnusableEntry("it has two members of a kind", members[TWICE].decode())
        image = next(members[extension] for extension in IMAGE_FORMATS if extension in members)
        if image is None:
            raise UnusableEntry("its member is too large", f"over {MAX_MEMBER_BYTES // 1_000_000} MB")
        record = parse_object(members["json"]) if members.get("json") else {}
        caption = next(filter(None, (text_of(record, field) for field in self._fields)), None)
        if members.get("txt") and not (caption and self._field_is_given):
            try:
                caption = " ".join(members["txt"].decode("utf-8-sig").split()) or caption
            except UnicodeDecodeError:
                raise UnusableEntry("its caption is not UTF-8 text") from None
        source, licence = text_of(record, "source") or text_of(record, "url"), text_of(record, "licence")
        return Entry(image, caption, _lines(record), (1.0, 1.0), source=source, licence=licence)


def _lines(record: dict[str, object]) -> tuple[SourceLine, ...] | None:
    """The lines of a sample of our own schema, None for any other."""
    if "lines" not in record:
        return None
    try:
        layout = layout_from_json(record)
    except ValueError as error:
        raise UnusableEntry('field "lines" is wrong', str(error)) from None
    return tuple(
        SourceLine(line.text, line.polygon, line.language, line.valid, line.confidence) for line in layout.lines
    )


class _Header(tarfile.TarInfo):
    """Refuses overlong names, which tarfile would read into memory whatever their length."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size > MAX_HEADER_BYTES and header.type in _LONG_HEADERS:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


def _samples(path: Path) -> Iterator[tuple[str, dict[str, bytes | None], int]]:
    """Key, members by extension (None: too large) and end offset of each sample of a tar."""
    wanted = {*IMAGE_FORMATS, "txt", "json"}
    stem: str | None = None
    members: dict[str, bytes | None] = {}
    end = 0
    try:
        with tarfile.open(path, "r|*", tarinfo=_Header) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if not member.isfile() or name.is_absolute() or ".." in name.parts:
                    continue
                # A key ends at the first dot of the file's name.
                first, _, extension = name.name.partition(".")
                key = str(name.with_name(first)) if first else ""
                if key != stem:
                    if members and stem is not None:
                        yield stem, members, end
                    stem, members = key, {}
                if extension.lower() in members:
                    members[TWICE] = extension.lower().encode()
                elif extension.lower() in wanted and first:
                    stream = archive.extractfile(member) if member.size <= MAX_MEMBER_BYTES else None
                    members[extension.lower()] = stream.read() if stream is not None else None
                end = member.offset_data + member.size
            if members and stem is not None:
                yield stem, members, end
    except PermissionError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give yourself permission to read it.") from error
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a whole tar file ({reason}); get it again, or leave it out.") from error
