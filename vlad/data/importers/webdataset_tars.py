"""WebDataset tars of images with captions: KEY.jpg with KEY.txt, or with a caption in KEY.json.

Tars may be compressed. Their members are read as those of shards are (`tar_index`), and other ones are passed over.
Shards of our own schema keep their lines.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vlad.data.image_pixels import SOURCE_FORMATS
from vlad.data.importers.json_stream import parse_object
from vlad.data.importers.sources import Entry, ImageRef, SourceLine, UniqueKeys, UnusableEntry, text_of
from vlad.data.shards.tar_index import SampleMembers, TarTable, open_unpacked, read_sample, scan_tar
from vlad.data.shards.writer import full_disk
from vlad.layout.layout_files import layout_from_json
from vlad.utils.errors import UserError
from vlad.utils.passed_over import PassedOver

CAPTION_FIELDS = ("caption", "text", "prompt")
_TEXTS = ("txt", "caption")
# The text of NAME.jpg may be in NAME.jpg.txt.
CAPTION_KINDS = (*_TEXTS, *(f"{image}.{text}" for text in _TEXTS for image in SOURCE_FORMATS))
KINDS = frozenset((*SOURCE_FORMATS, *CAPTION_KINDS, "json"))
SHARD_FILES = (".sizes.json", "manifest.json", "skipped.jsonl")


class TarSource:
    """The samples of tar files that have an image, in the tars' order.

    Raises UserError for a broken tar, and where there is none.
    """

    format = "webdataset"

    def __init__(self, path: str, tars: tuple[Path, ...], caption_field: str | None = None) -> None:
        self.path = path
        self._tars = tars
        self._fields = CAPTION_FIELDS if caption_field is None else (caption_field,)
        self._field_is_given = caption_field is not None
        self.passed_over = PassedOver()
        self.count: int | None = 0
        for tar in tars:
            with _opened(tar) as (_, table):
                self.count += sum(_image_kind(sample) is not None for sample in table.samples)
                for member in table.passed_over:
                    self.passed_over.add(member.reason, f"{tar.name}: {member.name}")
                for sample in table.samples:
                    if _image_kind(sample) is None:
                        self.passed_over.add("caption without an image", f"{tar.name}: {sample.key}")

    def refs(self) -> Iterator[ImageRef]:
        """A reference to every sample that has an image."""
        keys, number = UniqueKeys(), 0
        for path in self._tars:
            with _opened(path) as (stream, table):
                for sample in table.samples:
                    if _image_kind(sample) is not None:
                        members = {} if sample.fault is not None else read_sample(stream, sample)
                        name = f"{path.name}: {sample.key}"
                        yield ImageRef(number, keys.key_of(sample.key), name, (members, sample.fault))
                        number += 1

    def read(self, ref: ImageRef) -> Entry:
        """The image and caption of a sample. Raises UnusableEntry."""
        members, fault = ref.payload
        if fault is not None:
            raise UnusableEntry("its members cannot be used", fault)
        image = next(members[kind] for kind in SOURCE_FORMATS if kind in members)
        record = parse_object(members["json"]) if "json" in members else {}
        caption = next(filter(None, (text_of(record, field) for field in self._fields)), None)
        text = next((members[kind] for kind in CAPTION_KINDS if kind in members), None)
        if text and not (caption and self._field_is_given):
            try:
                caption = " ".join(text.decode("utf-8-sig").split()) or caption
            except UnicodeDecodeError:
                raise UnusableEntry("its caption is not UTF-8 text") from None
        source, licence = text_of(record, "source") or text_of(record, "url"), text_of(record, "licence")
        return Entry(image, caption, _lines(record), (1.0, 1.0), source=source, licence=licence)


def _image_kind(sample: SampleMembers) -> str | None:
    return next((kind for kind in SOURCE_FORMATS if kind in sample.members), None)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, TarTable]]:
    """A tar and its table. Raises UserError for one that is damaged or cannot be read."""
    with contextlib.ExitStack() as opening:
        try:
            stream = opening.enter_context(open_unpacked(path))
            table = scan_tar(stream, KINDS)
        except PermissionError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}); give yourself permission to read it."
            ) from error
        except OSError as error:
            reason = error.strerror or str(error).partition("\n")[0]
            raise full_disk(Path(tempfile.gettempdir()), error) or _broken(path, reason) from error
        if table.damage is not None:
            raise _broken(path, table.damage)
        yield stream, table


def _broken(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is not a whole tar file ({reason}); get it again, or leave it out.")


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
