"""Result files that appear whole or not at all, whatever ends the process or the machine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor


def publish_file(temporary: Path, path: Path) -> None:
    """Renames a finished file once it is on the disk: a stage's checkpoints are removed because its results exist."""
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)
    flush_directory(path.parent)


def flush_directory(directory: Path) -> None:
    """Flushes a directory to the disk: a rename is lost without that."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replaced_directory(directory: Path) -> Iterator[Path]:
    """A new folder to be filled inside the block; then, flushed to the disk, it takes the directory's place.

    A block that fails, and a process that is killed, leave the directory as it was, or none.
    """
    partial, old = (directory.with_name(f"{directory.name}.{state}") for state in ("partial", "replaced"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    flush_directory(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors as safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)
        publish_file(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """Writes figures as JSON."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    publish_file(temporary, path)
