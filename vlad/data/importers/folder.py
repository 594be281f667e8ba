"""A folder of images, with subfolders.

The caption of `NAME.jpg` is the text of a file beside it, NAME.txt, NAME.caption, NAME.jpg.txt or NAME.jpg.caption, in
any case; else that of a `metadata.jsonl` or `metadata.csv` in its folder or one above (the imagefolder layout of
`datasets`): {"file_name": "NAME.jpg", "text": "..."}. A caption field that the user names takes precedence over the
files. Lines of a caption are joined by spaces. What is neither image nor caption is counted in `passed_over`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from vlad.data.image_pixels import HEIC, SOURCE_FORMATS
from vlad.data.importers.sources import Entry, ImageRef, UniqueKeys, UnusableEntry, read_small_file
from vlad.utils.errors import UserError, install_command
from vlad.utils.passed_over import PassedOver

METADATA = ("metadata.jsonl", "metadata.csv")
CAPTION_FILES = (".txt", ".caption")
CAPTION_FIELDS = ("text", "caption", "prompt")
MAX_LINE_BYTES = 4_000_000


class FolderSource:
    """The images of a folder (`SOURCE_FORMATS`, in any case), sorted by their path in it; hidden ones are left out.

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
        self.passed_over = PassedOver()
        self.count: int | None = 0
        captions = 0
        for _, _, caption in self._images(self.passed_over):
            self.count += 1
            captions += caption is not None
        if not self.count:
            known = ", ".join(SOURCE_FORMATS)
            raise UserError(f"There are no images in {folder} or the folders below it; known are {known}.")
        if self._field_is_given and not captions:
            raise UserError(
                f'--caption-field {caption_field}: no {METADATA[0]} in {folder} has text in field "{caption_field}" for'
                " an image; name another, or leave it out."
            )

    def refs(self) -> Iterator[ImageRef]:
        """A reference to every image."""
        keys = UniqueKeys()
        for number, (path, caption_file, caption) in enumerate(self._images()):
            inside = path.relative_to(self._folder)
            key = keys.key_of(inside.with_suffix("").as_posix())
            yield ImageRef(number, key, inside.as_posix(), (path, caption_file, caption))

    def read(self, ref: ImageRef) -> Entry:
        """An image with its caption."""
        path, caption_file, caption = ref.payload
        written = None if caption_file is None else read_caption_file(caption_file)
        return Entry((path,), caption or written if self._field_is_given else written or caption)

    def _images(self, passed_over: PassedOver | None = None) -> Iterator[tuple[Path, Path | None, str | None]]:
        """Each image with its caption file and the caption of the metadata; counts everything else."""
        metadata = _Metadata({}, {})
        passed = passed_over if passed_over is not None else PassedOver()
        for path, beside in walk(self._folder, passed):
            inside = path.relative_to(self._folder).as_posix()
            if path.name in METADATA:
                _read_metadata(path, self._fields, metadata)
            elif path.suffix[1:].lower() in SOURCE_FORMATS:
                names = (f"{stem}{suffix}".lower() for stem in (path.stem, path.name) for suffix in CAPTION_FILES)
                caption_file = next((beside.captions[name] for name in names if name in beside.captions), None)
                yield path, caption_file, metadata.take(path)
            elif path.suffix.lower() not in CAPTION_FILES:
                hint = f"; {install_command('heic')} reads it" if path.suffix[1:].lower() in HEIC else ""
                passed.add(f"file of another kind ({path.suffix or 'no extension'}{hint})", inside)
            elif path.stem.lower() not in beside.images:
                passed.add("caption without an image", inside)
        for name in metadata.captions:
            passed.add("row of the metadata without an image", os.path.relpath(name, row_key(self._folder)))


@dataclass(frozen=True)
class _Beside:
    """What lies in one folder: its caption files by their names, and its images' names without and with extension."""

    captions: dict[str, Path]
    images: set[str]


@dataclass(frozen=True)
class _Metadata:
    """Captions by `row_key` of their image, and those keys by the key without an extension."""

    captions: dict[str, str]
    keys: dict[str, str]

    def take(self, image: Path) -> str | None:
        """The caption of an image, which may have been converted to another format since."""
        key = row_key(image)
        if key not in self.captions:
            key = self.keys.get(row_key(image.with_suffix("")), key)
        return self.captions.pop(key, None)


def row_key(path: Path | str) -> str:
    """A path as metadata is matched with images: forward slashes, composed Unicode, any case."""
    return unicodedata.normalize("NFC", os.path.normpath(str(path).replace("\\", "/"))).casefold()


def walk(folder: Path, passed_over: PassedOver) -> Iterator[tuple[Path, _Beside]]:
    """The files of a folder and its subfolders, sorted, each with what lies beside it; a folder's metadata comes first.
    Hidden ones and links to folders are counted.

    Lists one folder at a time, so that millions of files need little memory. Raises UserError for a folder that cannot
    be read.
    """
    try:
        with os.scandir(folder) as found:
            entries = [(entry.name + "/" * _is_folder(entry), entry) for entry in found]
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be read ({error.strerror}); give yourself permission to read it, or move it"
            " away."
        ) from error
    files = [folder / name for name, _ in entries if not name.endswith("/") and name[0] != "."]
    images = [path for path in files if path.suffix[1:].lower() in SOURCE_FORMATS]
    beside = _Beside(
        {path.name.lower(): path for path in sorted(files) if path.suffix.lower() in CAPTION_FILES},
        {name.lower() for path in images for name in (path.stem, path.name)},
    )
    for name, entry in sorted(entries, key=lambda pair: (pair[0] not in METADATA, pair[0])):
        is_folder = name.endswith("/")
        if name[0] == ".":
            passed_over.add("hidden folder" if is_folder else "hidden file", name)
        elif not is_folder:
            yield folder / name, beside
        elif entry.is_symlink():  # it may lead back up
            passed_over.add("link to a folder", name)
        else:
            yield from walk(folder / entry.name, passed_over)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link into a folder without permission
        return False


def read_caption_file(path: Path) -> str | None:
    """The text of a caption file, its lines joined by spaces; None for none. Raises UnusableEntry."""
    data = read_small_file(path)
    if data is None:
        return None
    try:
        return " ".join(data.decode("utf-8-sig").split()) or None
    except UnicodeDecodeError:
        raise UnusableEntry("its caption is not UTF-8 text", path.name) from None


def _open_metadata(path: Path) -> BufferedReader:
    if not path.is_file():  # a pipe might wait for ever
        raise UserError(f"{path} is not a file; write one with a line per image, or move it away.")
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); give yourself permission to read it, or move it away."
        ) from error


def _read_metadata(path: Path, fields: tuple[str, ...], metadata: _Metadata) -> None:
    """Adds the captions of a metadata file. Raises UserError with line and field."""
    for where, record in _rows(path):
        if not isinstance(record, dict) or not isinstance(record.get("file_name"), str):
            raise UserError(f'{where} has no text in field "file_name"; fix the line, or remove the file.')
        caption = next((record[field] for field in fields if record.get(field) is not None), None)
        if caption is None:
            continue
        if not isinstance(caption, str):
            field = next(field for field in fields if record.get(field) is not None)
            raise UserError(f'{where}: field "{field}" is not text; fix the line, or remove the file.')
        if caption.strip():
            image = Path(row_key(path.parent / record["file_name"].replace("\\", "/")))
            metadata.captions[str(image)] = " ".join(caption.split())
            metadata.keys[str(image.with_suffix(""))] = str(image)


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The records of a metadata file, each with its place. Raises UserError."""
    with _open_metadata(path) as stream:
        if path.suffix == ".csv":
            text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
            try:
                for number, record in enumerate(csv.DictReader(text), start=2):
                    yield f"{path}, line {number}", record
            except (csv.Error, UnicodeDecodeError) as error:
                raise UserError(f"{path} is no CSV of UTF-8 text ({error}); fix it, or remove the file.") from error
            return
        for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES + 1), b""), start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise UserError(f"{where} is over {MAX_LINE_BYTES // 1_000_000} MB long; fix it, or remove the file.")
            try:
                yield where, json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is not JSON ({error}); fix the line, or remove the file.") from error
