"""Shards for the trainer: from the batch at which a resumed run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from vlad.data.shards import ShardBatches, ShardIndex, StreamOptions
from vlad.records import Batch


class ShardDataModule(L.LightningDataModule):
    """All batches of one stage. Its position is the trainer's count of batches, so a checkpoint holds it."""

    def __init__(self, index: ShardIndex, options: StreamOptions, batches: int, quarantine: Path) -> None:
        super().__init__()
        self.index, self.options, self.batches, self.quarantine = index, options, batches, quarantine
        self.first_batch = 0

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        # Counted by the loop: the loader's workers run ahead of it.
        return {"first_batch": self.trainer.fit_loop.epoch_loop.total_batch_idx + 1}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first_batch = state_dict["first_batch"]

    def train_dataloader(self) -> DataLoader[Batch]:
        dataset = ShardBatches(
            self.index, self.options, self.batches - self.first_batch, self.first_batch, self.quarantine
        )
        return DataLoader(
            dataset,
            batch_size=None,
            num_workers=self.options.workers,
            multiprocessing_context="fork" if self.options.workers else None,
            pin_memory=torch.cuda.is_available(),
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)
