"""Checkpoints: written under a temporary name, read back, published by rename, then pruned."""

from __future__ import annotations

import errno
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import torch

from vlad.errors import UserError

_NAME = re.compile(r"step-(\d{8})\.ckpt")


def checkpoint_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of an optimiser step stands."""
    return directory / f"step-{step:08d}.ckpt"


def list_checkpoints(directory: Path) -> list[Path]:
    """The published checkpoints of a stage, oldest first."""
    return sorted(path for path in directory.glob("*.ckpt") if _NAME.fullmatch(path.name))


def newest_checkpoint(directory: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint that reads back whole, and the newer ones that do not."""
    broken = []
    for path in reversed(list_checkpoints(directory)):
        try:
            read_checkpoint(path)
        except UserError:
            broken.append(path)
            continue
        return path, broken
    return None, broken


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint; tensors and plain values only, so that reading it runs no code.

    Raises UserError when the file is damaged or holds anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not compare the checksums that it has written
            damaged = archive.testzip()
        if damaged is not None:
            raise UserError(f"The checkpoint {path} is damaged ({damaged}); remove it.")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # torch names no common class for what a damaged file raises
        raise UserError(f"The checkpoint {path} cannot be read ({type(error).__name__}); remove it.") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{path} is not a checkpoint of a stage; remove it.")
    return content


class Checkpoints(L.Callback):
    """Saves every `every_steps` optimiser steps and at the end or interruption of the stage; keeps the newest."""

    def __init__(self, directory: Path, every_steps: int, keep: int) -> None:
        self.directory, self.every_steps, self.keep = directory, every_steps, keep
        self.saved_step = -1

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step != self.saved_step and (step % self.every_steps == 0 or trainer.should_stop):
            self._save(trainer, step)

    def _save(self, trainer: L.Trainer, step: int) -> None:
        path = checkpoint_path(self.directory, step)
        temporary = path.with_suffix(".ckpt.partial")
        try:
            trainer.save_checkpoint(temporary)  # every rank takes part; rank zero writes
            if trainer.is_global_zero:
                with temporary.open("rb") as stream:
                    os.fsync(stream.fileno())
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            if _is_full(error):
                raise self._full_disk(step) from error
            raise
        if trainer.is_global_zero:
            read_checkpoint(temporary)
            temporary.replace(path)
            for old in list_checkpoints(self.directory)[: -self.keep]:
                old.unlink()
        trainer.strategy.barrier()
        self.saved_step = step

    def _full_disk(self, step: int) -> UserError:
        kept = list_checkpoints(self.directory)
        goes_on = f"it goes on from {kept[-1].name}" if kept else "the stage begins again"
        return UserError(
            f"The disk of {self.directory} is full: step {step} could not be saved. Make room and run the same command"
            f" again: {goes_on}."
        )


def _is_full(error: BaseException | None) -> bool:
    """Whether the disk is what stopped a write; torch's own writer says it in words, or passes the cause on."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(error, RuntimeError) and ("file write failed" in str(error) or "No space left" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
