"""Logged beside the losses: images a second, waiting for data, memory, learning rates, losses by noise level."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch

from vlad.training.datamodule import ShardDataModule
from vlad.utils.hardware import peak_memory_bytes, synchronize


class StepMetrics(L.Callback):
    """Every `every_steps` steps logs the figures since the last time; `data_wait` is this rank's."""

    def __init__(self, every_steps: int, images_per_step: int) -> None:
        self.every_steps, self.images_per_step = every_steps, images_per_step
        self.logged_step = 0
        self.rates: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(trainer)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.rates = learning_rates(optimizer)  # at the end of the batch they are those of the next step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step == self.logged_step or step % self.every_steps:
            return
        seconds = max(1e-9, time.monotonic() - self.since)
        metrics = {
            "images_per_second": (step - self.logged_step) * self.images_per_step / seconds,
            "data_wait": self._waited(trainer) / seconds,
            "memory_gb": peak_memory_bytes(pl_module.device) / 1e9,
        }
        pl_module.log_dict(metrics | self.rates)
        levels = getattr(pl_module, "noise_levels", None)
        if levels is not None and (means := levels.take()):
            # Past Lightning's store of metrics: it would repeat the last value of a level that has not come up since.
            for logger in trainer.loggers:
                logger.log_metrics(means, step=step - 1)
        self._begin(trainer)

    def _begin(self, trainer: L.Trainer) -> None:
        self.since, self.logged_step = time.monotonic(), trainer.global_step
        self.waited_before = total_wait(trainer)

    def _waited(self, trainer: L.Trainer) -> float:
        return total_wait(trainer) - self.waited_before


class StepTimer(L.Callback):
    """Times the steps after the first `warmup`, the device's own work included."""

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.seconds = self.waited = 0.0
        self.peak_bytes = 0
        self.attention = ""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.warmup:
            synchronize(pl_module.device)
            self.since, self.waited_before = time.perf_counter(), total_wait(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        synchronize(pl_module.device)
        self.seconds = time.perf_counter() - self.since
        self.waited = total_wait(trainer) - self.waited_before
        self.peak_bytes = peak_memory_bytes(pl_module.device)


def total_wait(trainer: L.Trainer) -> float:
    """Seconds that the trainer has waited for its data loader so far."""
    data = getattr(trainer, "datamodule", None)
    return data.waited_seconds if isinstance(data, ShardDataModule) else 0.0


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """`learning_rate`, or one of each rate where the optimiser's groups differ in theirs."""
    rates = {group.get("name", str(number)): group["lr"] for number, group in enumerate(optimizer.param_groups)}
    if len(set(rates.values())) == 1:
        return {"learning_rate": next(iter(rates.values()))}
    return {f"learning_rate_{name}": rate for name, rate in rates.items()}
