"""A folder of images, with subfolders.

The caption of `NAME.jpg` is the first line of `NAME.txt` beside it; else that of a `metadata.jsonl` in its folder or
one above (the imagefolder layout of `datasets`): {"file_name": "NAME.jpg", "text": "..."}. A caption field that the
user names takes precedence over `NAME.txt`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from vlad.data.decoding import IMAGE_FORMATS
from vlad.data.importers.sources import Entry, ImageRef, UniqueKeys, UnusableEntry, read_small_file
from vlad.utils.errors import UserError

METADATA = "metadata.jsonl"
CAPTION_FIELDS = ("text", "caption", "prompt")
MAX_LINE_BYTES = 4_000_000


class FolderSource:
    """The images of a folder (jpg, jpeg, png, webp in any case), sorted by their path in it; hidden ones are left out.

    `caption_field` is the field of the metadata (None: the first of CAPTION_FIELDS). Raises UserError when the folder
    cannot be read or holds no image, or a metadata file is wrong.
    """

    format = "folder"

    def __init__(self, folder: Path, caption_field: str | None = None) -> None:
        self.path = str(folder)
        self._folder = folder
        self._fields = CAPTION_FIELDS if caption_field is None else (caption_field,)
        self._field_is_given = caption_field is not None
        try:
            next(folder.iterdir(), None)
        except OSError as error:
            raise UserError(
                f"The folder {folder} cannot be read ({error.strerror}); give yourself permission to read it."
            ) from error
        self.count: int | None = 0
        captions = 0
        for _, caption in self._images():
            self.count += 1
            captions += caption is not None
        if not self.count:
            known = ", ".join(IMAGE_FORMATS)
            raise UserError(f"There are no images in {folder} or the folders below it; known are {known}.")
        if self._field_is_given and not captions:
            raise UserError(
                f'--caption-field {caption_field}: no {METADATA} in {folder} has text in field "{caption_field}" for a'
                " image; name another, or leave it out."
            )

    def refs(self) -> Iterator[ImageRef]:
        """A reference to every image."""
        keys = UniqueKeys()
        for number, (path, caption) in enumerate(self._images()):
            inside = path.relative_to(self._folder)
            key = keys.key_of(inside.with_suffix("").as_posix())
            yield ImageRef(number, key, inside.as_posix(), (path, caption))

    def read(self, ref: ImageRef) -> Entry:
        """An image with its caption."""
        path, caption = ref.payload
        written = read_caption_file(path.with_suffix(".txt"))
        return Entry((path,), caption or written if self._field_is_given else written or caption)

    def _images(self) -> Iterator[tuple[Path, str | None]]:
        captions: dict[str, str] = {}
        for path in walk(self._folder):
            if path.name == METADATA:
                captions |= _read_metadata(path, self._fields)
            elif path.suffix[1:].lower() in IMAGE_FORMATS:
                yield path, captions.pop(str(path), None)


def walk(folder: Path) -> Iterator[Path]:
    """The files of a folder and its subfolders, without hidden ones, sorted; a folder's metadata comes first.

    Lists one folder at a time, so that millions of files need little memory. Raises UserError for a folder that cannot
    be read.
    """
    try:
        with os.scandir(folder) as found:
            visible = [(entry.name + "/" * _is_folder(entry), entry) for entry in found if entry.name[0] != "."]
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be read ({error.strerror}); give yourself permission to read it, or move it"
            " away."
        ) from error
    for name, entry in sorted(visible, key=lambda pair: (pair[0] != METADATA, pair[0])):
        if not name.endswith("/"):
            yield folder / name
        elif not entry.is_symlink():  # it may lead back up
            yield from walk(folder / entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link into a folder without permission
        return False


def read_caption_file(path: Path) -> str | None:
    """The first line of a caption file, None where there is no file or the line is empty. Raises UnusableEntry."""
    data = read_small_file(path)
    if data is None:
        return None
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UnusableEntry("its caption is not UTF-8 text", path.name) from None
    return " ".join(lines[0].split()) or None if lines else None


def _open_metadata(path: Path) -> BufferedReader:
    if not path.is_file():  # a pipe might wait for ever
        raise UserError(f"{path} is not a file; write one with a line per image, or move it away.")
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); give yourself permission to read it, or move it away."
        ) from error


def _read_metadata(path: Path, fields: tuple[str, ...]) -> dict[str, str]:
    """Captions by the path of their image. Raises UserError with line and field."""
    captions = {}
    with _open_metadata(path) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES + 1), b""), start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise UserError(f"{where} is over {MAX_LINE_BYTES // 1_000_000} MB long; fix it, or remove the file.")
            try:
                record: Any = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is not JSON ({error}); fix the line, or remove the file.") from error
            if not isinstance(record, dict) or not isinstance(record.get("file_name"), str):
                raise UserError(f'{where} has no text in field "file_name"; fix the line, or remove the file.')
            caption = next((record[field] for field in fields if record.get(field) is not None), None)
            if caption is None:
                continue
            if not isinstance(caption, str):
                field = next(field for field in fields if record.get(field) is not None)
                raise UserError(f'{where}: field "{field}" is not text; fix the line, or remove the file.')
            if caption.strip():
                captions[os.path.normpath(path.parent / record["file_name"])] = " ".join(caption.split())
    return captions
