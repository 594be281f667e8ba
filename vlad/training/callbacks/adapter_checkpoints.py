"""Saves adapters in peft's format while they are trained, and reads each back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from torch import nn

from vlad.lora.inject import has_adapter, untrained_targets
from vlad.training.callbacks.ema import EMA
from vlad.training.publish import write_adapters


class AdapterCheckpoints(L.Callback):
    """Every `every_steps` steps writes the averaged adapters to one directory; one that reads back wrong stops the run.

    Adapters that nothing has trained yet (of a later phase or stage) are left out.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module | None],
        directory: Path,
        every_steps: int,
        ema: EMA,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.modules, self.directory, self.every_steps, self.ema = modules, directory, every_steps, ema
        self.metadata = dict(metadata or {})
        self.saved_step = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        step = trainer.global_step
        if step % self.every_steps or step == self.saved_step or not trainer.is_global_zero:
            return
        self.saved_step = step
        with self.ema.swapped_in(pl_module):
            trained = {name: m for name, m in self.modules.items() if has_adapter(m) and not untrained_targets(m)}
            write_adapters(trained, self.directory, {**self.metadata, "step": step})
