"""Checkpoint files: written, read back, published by rename, found again and pruned.

The name `step-*.ckpt` marks a complete file: it is given by rename once the file is on the disk and has been read back.
Killed at any instant, a run leaves the earlier ones, and at worst a `.partial` beside them. A sharded run's checkpoint
is a folder of that name with a file a rank (`rank-00000-of-00002`), under the same rules.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlad.utils import distributed
from vlad.utils.atomic_files import PARTIAL, flush_directory
from vlad.utils.errors import UserError

DAMAGED = ".damaged"
_NAME = re.compile(r"step-(\d{8,})\.ckpt")
_RANK = re.compile(r"rank-(\d+)-of-(\d+)")
POLL_SECONDS = 0.05
# What a file takes beyond its tensors: names, the zip's directory, padding.
_OVERHEAD_BYTES = 1_000_000


def checkpoint_path(directory: Path, step: int) -> Path:
    """The path of an optimiser step's checkpoint."""
    return directory / f"step-{step:08d}.ckpt"


def is_checkpoint(path: Path) -> bool:
    """Whether a checkpoint of that name has been published."""
    return _NAME.fullmatch(path.name) is not None and path.exists()


def step_of(path: Path) -> int:
    """The optimiser step in a checkpoint's name."""
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return int(found.group(1))


def list_checkpoints(directory: Path) -> list[Path]:
    """The published checkpoints of a stage, oldest first."""
    return sorted((path for path in directory.glob("*.ckpt") if _NAME.fullmatch(path.name)), key=step_of)


@dataclass(frozen=True)
class SkippedCheckpoint:
    """A checkpoint that cannot be used, and why not."""

    path: Path
    reason: str


class OtherRanksError(UserError):
    """A whole checkpoint of another number of processes."""


def newest_checkpoint(directory: Path) -> tuple[Path | None, list[SkippedCheckpoint]]:
    """The newest checkpoint that reads back whole, and the newer ones that do not.

    Raises UserError for one of fewer processes than read it.
    """
    skipped = []
    for path in reversed(list_checkpoints(directory)):
        try:
            read_checkpoint(path)
        except OtherRanksError:
            raise
        except UserError as error:
            skipped.append(SkippedCheckpoint(path, str(error.__cause__ or error)))
            continue
        return path, skipped
    return None, skipped


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, its tensors mapped from the file; reading it runs no code.

    Every byte is compared with the stored checksums. Of a folder all files are checked, so that all ranks agree, and
    this rank's content is returned. Raises UserError, with the reason as its cause, when a file is damaged, missing, or
    holds anything but tensors and plain values.
    """
    if path.is_dir():
        return _read_parts(path)
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not check the checksums that it writes
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(content, dict) or "state_dict" not in content:
            raise ValueError("it is not a checkpoint of a stage")
    except Exception as error:  # torch and zipfile share no class for damaged files
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"The checkpoint {path} cannot be read ({reason}); remove it.") from error
    return content


def own_part(path: Path) -> Path:
    """The file that this rank reads of a checkpoint."""
    return next(path.glob(f"rank-{distributed.launch_rank():05d}-of-*"), path) if path.is_dir() else path


def _read_parts(folder: Path) -> dict[str, Any]:
    found = {name: part for part in folder.iterdir() if (name := _RANK.fullmatch(part.name))}
    ranks = {int(name.group(2)) for name in found}
    if len(ranks) != 1 or {int(name.group(1)) for name in found} != set(range(*ranks)):
        error = ValueError("the files of some ranks are missing")
        raise UserError(f"The checkpoint {folder} cannot be read ({error}); remove it.") from error
    contents = {int(name.group(1)): read_checkpoint(part) for name, part in found.items()}
    rank = distributed.launch_rank()
    if rank not in contents:
        raise OtherRanksError(
            f"The checkpoint {folder} was written by {len(contents)} processes, and this run has another number; start"
            f" it with {len(contents)} again."
        )
    return contents[rank]


def write_part(content: dict[str, Any], path: Path, rank: int, ranks: int, patience_seconds: float) -> None:
    """Writes this rank's file of a sharded checkpoint; rank 0 publishes the folder once all ranks' files are in it.

    Raises what `write_checkpoint` does, and on rank 0 OSError where another rank could not write.
    """
    folder = path.with_name(path.name + PARTIAL)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"rank-{number:05d}-of-{ranks:05d}" for number in range(ranks)]
    failed = folder / "failed"
    try:
        write_checkpoint(content, folder / names[rank])
        if rank:
            return
        until = time.monotonic() + patience_seconds
        while not all((folder / name).is_file() for name in names):
            if failed.exists() or time.monotonic() > until:
                raise OSError(errno.EIO, "another rank could not write its part")
            time.sleep(POLL_SECONDS)
        flush_directory(folder)
        folder.replace(path)
        flush_directory(path.parent)
    except BaseException:
        if rank:
            with contextlib.suppress(OSError):
                failed.mkdir(parents=True, exist_ok=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Writes under a temporary name, flushes to the disk, reads back, and only then renames the file.

    Raises OSError (ENOSPC) where the disk has no room, before a byte is written where that is known; the temporary file
    is removed then.
    """
    temporary = path.with_name(path.name + PARTIAL)
    try:
        _refuse_without_room(content, path.parent)
        with temporary.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
            # Read back from the disk, not from memory, as far as the system lets go of what it has just written.
            if hasattr(os, "posix_fadvise"):  # not on macOS and Windows
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        read_checkpoint(temporary)
        temporary.replace(path)
        flush_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _refuse_without_room(content: dict[str, Any], directory: Path) -> None:
    needed = tensor_bytes(content) + _OVERHEAD_BYTES
    free = shutil.disk_usage(directory).free
    if free < needed:
        message = f"{free / 1e6:.0f} MB are free and the checkpoint takes {needed / 1e6:.0f}"
        raise OSError(errno.ENOSPC, message)


def prune_checkpoints(directory: Path, keep_last: int, keep_every_steps: int) -> None:
    """Removes all but the `keep_last` newest and one every `keep_every_steps` steps (0: none of these)."""
    for path in list_checkpoints(directory)[: -keep_last or None]:
        if not keep_every_steps or step_of(path) % keep_every_steps:
            remove_checkpoint(path)


def remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint, if it is there; a folder is renamed first, so that its remains are not taken for one."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    doomed = path.with_name(path.name + PARTIAL)
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def set_aside(path: Path) -> Path:
    """Renames a damaged checkpoint and returns its new path.

    Under its own name it would count among the newest that are kept, and whole ones of earlier steps would be pruned.
    """
    aside = path.with_name(path.name + DAMAGED)
    remove_checkpoint(aside)
    return path.rename(aside)


def remove_damaged(directory: Path) -> None:
    """Removes the checkpoints that were set aside."""
    for path in directory.glob(f"*{DAMAGED}"):
        remove_checkpoint(path)


def remove_partial(directory: Path) -> None:
    """Removes what a killed run was writing. Only for the process that holds the run directory's lock."""
    for path in directory.glob(f"*{PARTIAL}"):
        remove_checkpoint(path)


def copied_to_cpu(content: Any) -> Any:
    """The same nested dicts and lists with every tensor copied to memory of its own."""
    if isinstance(content, Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {name: copied_to_cpu(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(copied_to_cpu(value) for value in content)
    return content


def tensor_bytes(content: Any) -> int:
    """Bytes of the tensors in nested dicts and lists."""
    return sum(tensor.nbytes for tensor in _tensors(content))


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from _tensors(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _tensors(value)
