"""Parquet files, and datasets of the Hugging Face Hub, through `datasets` (the extra `hf`).

The images are the first column of type Image; the captions, if any, one of CAPTION_FIELDS.
"""

from __future__ import annotations

from collections.abc import Iterator
from logging import CRITICAL
from pathlib import Path
from typing import Any

from vlad.data.importers.sources import Entry, ImageRef, UnusableEntry, safe_key, text_of
from vlad.utils.errors import UserError, install_command
from vlad.utils.passed_over import PassedOver

CAPTION_FIELDS = ("text", "caption", "prompt")


class HuggingFaceSource:
    """The rows of a split: `path` is a Parquet file, a folder with such files, or a dataset's name on the Hub.

    Raises UserError where `datasets` is not installed, cannot read the source, or finds no images in it.
    """

    format = "huggingface"

    def __init__(self, path: str, caption_field: str | None = None, split: str = "train") -> None:
        self.path = path
        self.count: int | None = None
        self.passed_over = PassedOver()
        self._split = split
        columns = self._open().features or {}
        kinds = {name: type(feature).__name__ for name, feature in columns.items()}
        self._image_field = next((name for name, kind in kinds.items() if kind == "Image"), None)
        if self._image_field is None:
            listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "none"
            raise UserError(f"{path} has no column of type Image among its columns: {listed}.")
        if caption_field is not None and caption_field not in kinds:
            raise UserError(f"{path} has no column {caption_field!r}; its columns: {', '.join(kinds)}.")
        self._caption_field = caption_field or next((name for name in CAPTION_FIELDS if name in kinds), None)

    def refs(self) -> Iterator[ImageRef]:
        """A reference to every row."""
        from datasets import Image

        stem = safe_key(Path(self.path).stem)
        rows = self._open().cast_column(self._image_field, Image(decode=False))
        for number, row in enumerate(rows):
            kept = {"image": row[self._image_field]}
            if self._caption_field is not None:
                kept["caption"] = row[self._caption_field]
            yield ImageRef(number, f"{stem}_{number:08d}", f"row {number + 1}", kept)

    def read(self, ref: ImageRef) -> Entry:
        """The image and caption of a row. Raises UnusableEntry."""
        image = ref.payload["image"] or {}
        if image.get("bytes"):
            return Entry(image["bytes"], text_of(ref.payload, "caption"))
        if image.get("path"):
            return Entry((Path(image["path"]),), text_of(ref.payload, "caption"))
        raise UnusableEntry("its row has no image")

    def _open(self) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise UserError(
                f"Reading {self.path} needs the library 'datasets' ({error}); run: {install_command('hf')}."
            ) from error
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(CRITICAL)  # errors are reported below, once
        path = Path(self.path)
        try:
            if path.is_file() or (path.is_dir() and any(path.rglob("*.parquet"))):
                files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
                return datasets.load_dataset(
                    "parquet", data_files={self._split: list(map(str, files))}, split=self._split, streaming=True
                )
            kind = ("imagefolder",) if path.is_dir() else (self.path,)
            options = {"data_dir": self.path} if path.is_dir() else {}
            return datasets.load_dataset(*kind, split=self._split, streaming=True, **options)
        except Exception as error:  # whatever `datasets` and its libraries raise for a source
            reason = next(iter(str(error).splitlines()), type(error).__name__)[:200].rstrip(".")
            raise UserError(f"`datasets` cannot read {self.path}: {reason}; get it again, or name another.") from error
