"""What the logs say of a run beside its losses: noise levels, learning rates, waiting for data, memory."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from torch import Tensor

from vlad.training.datamodule import ShardDataModule
from vlad.utils.hardware import peak_memory_bytes, synchronize

NOISE_BINS = 10


class NoiseLevels:
    """The mean loss of each tenth of the noise levels, summed on the device between two looks."""

    def __init__(self, train_timesteps: int) -> None:
        self.train_timesteps = train_timesteps
        self.sums: Tensor | None = None

    def add(self, losses: Tensor, timesteps: Tensor) -> None:
        """Takes the losses (B) of rows at their timesteps (B); nothing waits for the device."""
        if self.sums is None:
            self.sums = torch.zeros(2, NOISE_BINS, device=losses.device)  # sums, counts
        bins = timesteps * NOISE_BINS // self.train_timesteps
        self.sums.index_add_(1, bins, torch.stack([losses.float(), torch.ones_like(losses, dtype=torch.float32)]))

    def take(self) -> dict[str, float]:
        """`noise_0` (hardly any) to `noise_9` (nearly all noise), those that came up since the last call."""
        if self.sums is None:
            return {}
        sums, counts = self.sums.tolist()
        self.sums = None
        return {f"noise_{i}": sums[i] / counts[i] for i in range(NOISE_BINS) if counts[i]}


class Watch(L.Callback):
    """Logs every `every_steps` steps what happened since the last time; `data_wait` is of this rank."""

    def __init__(self, every_steps: int, images_per_step: int) -> None:
        self.every_steps, self.images_per_step = every_steps, images_per_step
        self.logged_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step == self.logged_step or step % self.every_steps:
            return
        seconds = max(1e-9, time.monotonic() - self.since)
        found = {
            "images_per_second": (step - self.logged_step) * self.images_per_step / seconds,
            "data_wait": self._waited(trainer) / seconds,
            "memory_gb": peak_memory_bytes(pl_module.device) / 1e9,
        }
        pl_module.log_dict(found | learning_rates(trainer.optimizers[0]))
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


class StepClock(L.Callback):
    """How long the steps after the first `warmup` took, the device's own work included."""

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
    """Seconds that the trainer has waited for its loader so far."""
    data = getattr(trainer, "datamodule", None)
    return data.waited_seconds if isinstance(data, ShardDataModule) else 0.0


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """`learning_rate`, or one of each rate where the optimiser's groups differ in theirs."""
    rates = {group.get("name", str(number)): group["lr"] for number, group in enumerate(optimizer.param_groups)}
    if len(set(rates.values())) == 1:
        return {"learning_rate": next(iter(rates.values()))}
    return {f"learning_rate_{name}": rate for name, rate in rates.items()}
