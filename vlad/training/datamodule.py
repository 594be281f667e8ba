"""Lightning data module over shards, which a resumed run enters at its next batch."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from vlad.data.batch_buffers import worker_context
from vlad.data.dataset import ShardBatches
from vlad.data.options import StreamOptions
from vlad.data.shard_sets import ShardSets
from vlad.training.callbacks.stop_on_signal import SCHEDULER_SIGNALS
from vlad.types import Batch
from vlad.utils import distributed
from vlad.utils.errors import UserError, counted


def _ignore_signals(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach all processes of a group: the trainer saves, then ends its workers."""
    for number in (signal.SIGINT, *SCHEDULER_SIGNALS):
        signal.signal(number, signal.SIG_IGN)


class TimedLoader(DataLoader[Batch]):
    """A data loader that sums up how long the trainer waited for it."""

    waited_seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        iterator = super().__iter__()
        while True:
            started = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except UserError as error:
                raise _as_in_worker(error) from error
            self.waited_seconds += time.perf_counter() - started
            yield batch


def _as_in_worker(error: UserError) -> UserError:
    """The error as a worker raised it: torch hands it on with the worker's traceback as its text."""
    return type(error)(re.split(rf"^[\w.]*\b{type(error).__name__}: ", str(error), flags=re.MULTILINE)[-1])


class ShardDataModule(L.LightningDataModule):
    """All batches of one stage. Its position is the trainer's count of batches, which a checkpoint holds."""

    def __init__(self, sets: ShardSets, options: StreamOptions, batches: int, quarantine: Path) -> None:
        super().__init__()
        self.sets, self.options, self.batches, self.quarantine = sets, options, batches, quarantine
        self.first_batch = 0
        self.loader: TimedLoader | None = None

    @property
    def waited_seconds(self) -> float:
        """How long the trainer has waited for batches so far."""
        return 0.0 if self.loader is None else self.loader.waited_seconds

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        # Counted by the loop: the loader's workers run ahead of it.
        return {"first_batch": self.trainer.fit_loop.epoch_loop.total_batch_idx + 1, **self._place()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        now = self._place()
        if state_dict["ranks"] != now["ranks"]:
            raise UserError(
                f"The run was stopped with {counted(state_dict['ranks'], 'rank')} and cannot resume with"
                f" {now['ranks']}: each keeps its own place in the data. Start it with {state_dict['ranks']} again, or"
                " give the new run another name and this one as its base."
            )
        if state_dict["shards"] != now["shards"]:
            raise UserError(
                "The shards are not those that the run was stopped with; restore them, or give the new run another"
                " name and this one as its base."
            )
        self.first_batch = state_dict["first_batch"]

    def _place(self) -> dict[str, Any]:
        """What decides which samples a batch's number stands for."""
        return {"ranks": distributed.world_size(), "shards": self.sets.fingerprint}

    def train_dataloader(self) -> DataLoader[Batch]:
        dataset = ShardBatches(
            self.sets, self.options, self.batches - self.first_batch, self.first_batch, self.quarantine
        )
        self.loader = TimedLoader(
            dataset,
            batch_size=None,
            num_workers=self.options.workers,
            multiprocessing_context=worker_context(self.options.workers),
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_ignore_signals,
        )
        return self.loader

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)
