"""Seeds torch anew for every batch, so that a resumed run continues with the same random numbers."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from vlad.utils.distributed import derived_seed


class SeedEachBatch(L.Callback):
    """Noise, timesteps and dropout as a function of (seed, stage, batch, rank) alone.

    No generator's state has to be kept, and no two ranks draw the same.
    """

    def __init__(self, seed: int, stage: str) -> None:
        self.seed, self.stage = seed, stage

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        # The loop's own count of batches goes on over a resume.
        number = trainer.fit_loop.epoch_loop.total_batch_idx
        torch.manual_seed(derived_seed(self.seed, self.stage, number, trainer.global_rank))
