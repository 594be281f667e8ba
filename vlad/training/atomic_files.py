"""Result files that appear whole or not at all, whatever ends the process or the machine."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
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
