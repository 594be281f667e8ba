"""Detecting the format of a source of images, and opening it with its importer."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vlad.data.image_pixels import SOURCE_FORMATS
from vlad.data.importers.anyword import AnyWordSource
from vlad.data.importers.folder import FolderSource
from vlad.data.importers.huggingface import HuggingFaceSource
from vlad.data.importers.laion_glyph import LAIONGlyphSource
from vlad.data.importers.mario import INDEX_LINE, MarioSource, looks_like_mario
from vlad.data.importers.mmocr import MMOCRSource, WildReceiptSource
from vlad.data.importers.sources import Source
from vlad.data.importers.webdataset_tars import SHARD_FILES, TarSource
from vlad.data.options import FORMATS
from vlad.data.storage.locations import errors_naming, expand_braces
from vlad.data.storage.urls import display_url, is_url
from vlad.utils.errors import UserError, did_you_mean
from vlad.utils.passed_over import PassedOver
from vlad.utils.paths import checked_path

# Formats without a use for --caption-field, and for --images.
WITHOUT_FIELDS = ("mario", "mmocr", "wildreceipt")
WITHOUT_FOLDER = ("folder", "laion_glyph", "huggingface", "webdataset")
PEEK_BYTES = 1 << 16
_TAR_NAME = re.compile(r"\.(tar(\.(gz|bz2|xz|lzma|zst))?|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)


def open_source(
    path: str, format: str | None = None, images: Path | None = None, caption_field: str | None = None
) -> Source:
    """The source at `path`, of a format of FORMATS (None: detected).

    `images` is the folder of an annotation file's images (None: as the file says, or beside it). `caption_field` is the
    field or column of the caption (None: the format's own). Raises UserError where there is no source, it is empty, or
    its format is not known.
    """
    if not path.strip():
        raise UserError("SOURCE is empty; name a folder or a file that holds images.")
    if is_url(path):
        raise UserError(
            f"SOURCE {display_url(path)}: sources are read from local disks; fetch it first, or mount it. Finished"
            " shards can be trained on at their URL."
        )
    if format is not None and format not in FORMATS:
        raise UserError(f"There is no format {format!r}.{did_you_mean(format, FORMATS)} Known: {', '.join(FORMATS)}.")
    if images is not None and not images.is_dir():
        raise UserError(f"There is no folder {images}; name the one with the images of {path}.")
    tars = _tars(path)
    if not tars:
        checked_path(path, "SOURCE")
    elif format is None:
        _refuse_images_beside_tars(Path(path), tars)
    if format is None:
        format = "webdataset" if tars else detect_format(Path(path))
    if images is not None and format in WITHOUT_FOLDER:
        raise UserError(f"--images: a source of format {format} has its images itself; leave it out.")
    if caption_field is not None and format in WITHOUT_FIELDS:
        raise UserError(f"--caption-field: format {format} has no fields with captions; leave it out.")
    if format == "huggingface":
        return HuggingFaceSource(path, caption_field)
    if format == "webdataset":
        if not tars:
            raise UserError(f"There are no tar files at {path}.")
        source = TarSource(path, tars, caption_field)
        _count_files_beside_tars(Path(path), source.passed_over)
        return source
    return _open_files(Path(path), format, images, caption_field)


def _open_files(path: Path, format: str, images: Path | None, caption_field: str | None) -> Source:
    if not path.exists():
        raise _nothing_there(path)
    if not (path.is_dir() or path.is_file()):  # reading a pipe might wait for ever
        raise _neither(path)
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read (Permission denied); give yourself permission to read it.")
    if format == "folder" and not path.is_dir():
        raise UserError(f"{path} is a file; name the folder that holds the images.")
    if format not in ("folder", "mario") and path.is_dir():
        raise UserError(f"{path} is a folder; name the annotation file in it.")
    source: Source
    if format == "folder":
        source = FolderSource(path, caption_field)
    elif format == "mario":
        source = MarioSource(path, images)
    elif format == "anyword":
        source = AnyWordSource(path, images, caption_field)
    elif format == "laion_glyph":
        source = LAIONGlyphSource(path, caption_field)
    elif format == "mmocr":
        source = MMOCRSource(path, images)
    else:
        source = WildReceiptSource(path, images)
    return source


def _nothing_there(path: Path) -> UserError:
    return UserError(f"There is no file or folder {path}; name one that holds images.")


def _neither(path: Path) -> UserError:
    return UserError(f"{path} is neither a file nor a folder; name one that holds images.")


def detect_format(path: Path) -> str:
    """The format of a source, from its contents. Raises UserError that lists the known formats."""
    if not path.exists():
        raise _nothing_there(path)
    if path.is_dir():
        return _folder_format(path)
    if not path.is_file():
        raise _neither(path)
    try:
        with path.open("rb") as stream:
            beginning = stream.read(PEEK_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give yourself permission to read it.") from error
    if not beginning:
        raise UserError(f"{path} is empty; get it again.")
    if path.suffix[1:].lower() in SOURCE_FORMATS:
        raise UserError(f"{path} is a file; name the folder that holds the images.")
    known = _file_format(path, beginning)
    if known is None:
        raise UserError(f"{path} has no known format; name it with --format: {', '.join(FORMATS)}.")
    return known


def _file_format(path: Path, beginning: bytes) -> str | None:
    first_line = beginning.splitlines()[0]
    known = None
    if path.suffix.lower() == ".parquet":
        known = "huggingface"
    elif beginning.startswith(b"[") and (b'"img_code"' in beginning or b'"caption_blip"' in beginning):
        known = "laion_glyph"
    elif beginning.startswith(b"{") and b'"data_list"' in beginning and b'"img_name"' in beginning:
        known = "anyword"
    elif beginning.startswith(b"{") and b'"data_list"' in beginning and b'"instances"' in beginning:
        known = "mmocr"
    elif beginning.startswith(b"{") and b'"file_name"' in first_line and b'"box"' in first_line:
        known = "wildreceipt"
    elif INDEX_LINE.fullmatch(first_line.decode("utf-8", "replace")):
        known = "mario"
    return known


def _folder_format(folder: Path) -> str:
    try:
        if looks_like_mario(folder):
            return "mario"
        if any(folder.rglob("*.parquet")):
            return "huggingface"
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be read ({error.strerror}); give yourself permission to read it."
        ) from error
    return "folder"


def _tars(path: str) -> tuple[Path, ...]:
    """The tar files of a folder, a file or a brace pattern, sorted; none for anything else."""
    if _exists(path) and Path(path).is_dir():
        return tuple(sorted(file for file in Path(path).iterdir() if _is_tar(file)))
    if not _TAR_NAME.search(path):
        return ()
    expanded = source_paths(path)
    missing = next((part for part in expanded if not checked_path(part, "SOURCE").is_file()), None)
    if missing is not None:
        raise UserError(f"There is no tar file {missing}.")
    return tuple(sorted(expanded))


def _is_tar(path: Path) -> bool:
    return _TAR_NAME.search(path.name) is not None and not path.name.startswith(".")


def _refuse_images_beside_tars(folder: Path, tars: tuple[Path, ...]) -> None:
    """Raises UserError for a folder that holds both, of which only one would be read."""
    if not _exists(str(folder)) or not folder.is_dir():
        return
    images = (path for path in folder.rglob("*") if path.suffix[1:].lower() in SOURCE_FORMATS and path.is_file())
    image = next((path for path in images if not path.name.startswith(".")), None)
    if image is not None:
        raise UserError(
            f"{folder} holds images ({image.name}) as well as tar files ({tars[0].name}); say which are meant:"
            " --format folder or --format webdataset."
        )


def _count_files_beside_tars(folder: Path, passed_over: PassedOver) -> None:
    """Counts what a folder of tars holds besides, without the files that shards come with."""
    for path in sorted(folder.iterdir()) if _exists(str(folder)) and folder.is_dir() else ():
        if not _is_tar(path) and not path.name.endswith(SHARD_FILES):
            kind = "folder" if path.is_dir() else f"file of another kind ({path.suffix or 'no extension'})"
            passed_over.add(kind, path.name)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # a pattern may be longer than any file name
        return False


def source_paths(path: str) -> list[Path]:
    """The paths of SOURCE: itself where it exists, else those of its brace pattern. Raises UserError."""
    if _exists(path):
        return [Path(path)]
    with errors_naming("SOURCE"):
        return [Path(part) for part in expand_braces(path)]
