"""Saves checkpoints: when, and in a background thread while training goes on.

    trainer.save_checkpoint -> rank 0 (of a sharded run every rank) copies its state to the CPU -> a thread writes,
    reads back, publishes and prunes

At most one checkpoint is being written: the next waits for it, and so does the end of the stage.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from tqdm import tqdm

from vlad.training.callbacks.stop_on_signal import StopOnSignal, ends_optimizer_step
from vlad.training.checkpoint import (
    checkpoint_path,
    copied_to_cpu,
    list_checkpoints,
    own_part,
    prune_checkpoints,
    remove_checkpoint,
    step_of,
    write_checkpoint,
    write_part,
)
from vlad.utils import distributed
from vlad.utils.errors import UserError
from vlad.utils.failures import is_full_disk


class CheckpointWriter(CheckpointIO):
    """Lightning's checkpoint plugin: writes in a thread or at once, and prunes old checkpoints."""

    def __init__(
        self,
        keep_last: int,
        keep_every_steps: int,
        background: bool,
        sharded: bool = False,
        patience_seconds: float = 600.0,
    ) -> None:
        self.keep_last, self.keep_every_steps, self.background = keep_last, keep_every_steps, background
        # Every rank writes a part of its own; how long rank 0 waits for the others'.
        self.sharded, self.patience_seconds = sharded, patience_seconds
        self.thread: threading.Thread | None = None
        self.failed: tuple[Path, Exception] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Copies the state and writes it; a failure is kept for `take_failure`, not raised."""
        self.wait()
        if not self.background:
            self._write(checkpoint, Path(path))
            return
        # Not a daemon: at the end of the process Python waits for it.
        self.thread = threading.Thread(target=self._write, args=(copied_to_cpu(checkpoint), Path(path)))
        self.thread.start()

    def _write(self, content: dict[str, Any], path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self.sharded:
                write_part(content, path, distributed.rank(), distributed.world_size(), self.patience_seconds)
            else:
                write_checkpoint(content, path)
            if distributed.rank() == 0:
                prune_checkpoints(path.parent, self.keep_last, self.keep_every_steps)
        except Exception as error:
            self.failed = (path, error)  # reported by the trainer's own thread

    def wait(self) -> None:
        """Returns when nothing is being written."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def take_failure(self) -> tuple[Path, Exception] | None:
        """The checkpoint that could not be written since the last call, with the reason."""
        failed, self.failed = self.failed, None
        return failed

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return torch.load(own_part(Path(path)), map_location="cpu", weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        remove_checkpoint(Path(path))

    def teardown(self) -> None:
        self.wait()


class Checkpoints(L.Callback):
    """Saves every `every_steps` optimiser steps and at the end or interruption of the stage.

    `record` goes into every checkpoint as it is: the stage and config that it belongs to.
    """

    def __init__(
        self,
        directory: Path,
        writer: CheckpointWriter,
        every_steps: int,
        on_failure: Literal["stop", "go_on"],
        stop: StopOnSignal,
        record: dict[str, Any],
    ) -> None:
        self.directory, self.writer, self.every_steps = directory, writer, every_steps
        self.on_failure, self.stop, self.record = on_failure, stop, record
        self.saved_step = -1
        self.failures = 0
        # How long training has waited for checkpoints.
        self.waited_seconds = 0.0
        # The newest checkpoint that could not be written, with the reason.
        self.failed: tuple[Path, Exception] | None = None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = self.record

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._notice_failure()
        step = trainer.global_step
        if not ends_optimizer_step(trainer) or step == self.saved_step:
            return
        if step % self.every_steps == 0 or trainer.should_stop:
            self.saved_step = step
            started = time.monotonic()
            trainer.save_checkpoint(checkpoint_path(self.directory, step))  # every rank takes part; rank zero writes
            self.waited_seconds += time.monotonic() - started

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.writer.wait()
        self._notice_failure()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.writer.wait()

    def _notice_failure(self) -> None:
        """Reports a checkpoint that could not be written; where the run stops for it, all ranks do so together."""
        failed = self.writer.take_failure()
        if failed is None:
            return
        self.failures += 1
        self.failed = failed
        if self.on_failure == "stop":
            self.stop.stopped = True
        else:
            again = f"Training goes on and tries again in at most {self.every_steps} steps."
            tqdm.write(f"warning: {self._what_failed(failed)} {again}", file=sys.stderr)

    def error(self) -> UserError | None:
        """The error of a stopped run whose last state is not saved; None where it is."""
        if self.failed is None or (self.on_failure == "go_on" and step_of(self.failed[0]) != self.saved_step):
            return None
        return UserError(f"{self._what_failed(self.failed)} Make room and run the same command again.")

    def _what_failed(self, failed: tuple[Path, Exception]) -> str:
        path, error = failed
        kept = list_checkpoints(self.directory)
        place = f"The disk of {self.directory} is full" if is_full_disk(error) else f"{path} cannot be written"
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        resumes = f"the run would resume from {kept[-1].name}" if kept else "the stage would begin again"
        return f"{place}: step {step_of(path)} could not be saved ({detail}); without it, {resumes}."
