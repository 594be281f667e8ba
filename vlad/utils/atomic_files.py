"""Files and folders that appear whole or not at all, whatever ends the process or the machine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PARTIAL = ".partial"  # ends the name of what is being written


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """The path of a new file, to be written inside the block; then, flushed to the disk, it takes the other's place.

    A block that fails, and a process that is killed, leave the file as it was, or none.
    """
    temporary = path.with_name(path.name + PARTIAL)
    try:
        yield temporary
        _flush(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)
    flush_directory(path.parent)


@contextmanager
def replaced_directory(directory: Path) -> Iterator[Path]:
    """A new folder, to be filled inside the block; then, flushed to the disk, it takes the other's place.

    A block that fails, and a process that is killed, leave the directory as it was, or none.
    """
    partial, old = directory.with_name(directory.name + PARTIAL), directory.with_name(f"{directory.name}.replaced")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():
                _flush(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    flush_directory(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    with path.open("r+b") as stream:  # Windows flushes no file that is open for reading alone
        os.fsync(stream.fileno())


def flush_directory(directory: Path) -> None:
    """Flushes a directory to the disk: a rename is lost without that."""
    if os.name == "nt":  # opens no directory
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Writes a value as JSON."""
    with replaced_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors as safetensors, in a folder that is made where it is missing."""
    from safetensors.torch import save_file  # with torch, which a mistyped option does without

    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)
