"""The progress line of a stage."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import lightning as L
from tqdm import tqdm

from vlad.training.callbacks.metrics_logging import total_wait

LOG_FILE_SECONDS = 30.0  # between two states of the line where stderr is no terminal


class Progress(L.Callback):
    """One line a stage: steps, smoothed losses, images a second, time spent waiting for data, time left."""

    def __init__(self, label: str, images_per_step: int, steps: int) -> None:
        self.label, self.images_per_step, self.steps = label, images_per_step, steps
        self.bar: tqdm[Any] | None = None
        self.smoothed: dict[str, float] = {}
        self.started, self.first_step = time.monotonic(), 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            # In a file every new state of the line stays: a month of one a second would be hundreds of megabytes.
            every = 1.0 if sys.stderr.isatty() else LOG_FILE_SECONDS
            self.bar = tqdm(
                total=self.steps, initial=trainer.global_step, desc=self.label, unit="step",
                mininterval=every, maxinterval=max(10.0, every),
            )  # fmt: skip
        self.started, self.first_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.bar is None:
            return
        for name, value in trainer.progress_bar_metrics.items():
            # The loss of a skipped step, which is not finite, says nothing of the others.
            if isinstance(value, float) and math.isfinite(value):
                self.smoothed[name] = 0.98 * self.smoothed.get(name, value) + 0.02 * value
        self.bar.set_postfix(
            {
                **{name: f"{value:.4g}" for name, value in self.smoothed.items()},
                "img/s": f"{self.rate(trainer):.0f}",
                "data": f"{self.data_wait(trainer):.0%}",
            },
            refresh=False,
        )
        self.bar.update(trainer.global_step - self.bar.n)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()

    def rate(self, trainer: L.Trainer) -> float:
        """Images a second of all ranks since this process started the stage."""
        elapsed = max(1e-9, time.monotonic() - self.started)
        return (trainer.global_step - self.first_step) * self.images_per_step / elapsed

    def data_wait(self, trainer: L.Trainer) -> float:
        """The share of the time since then that this rank has waited for its data loader."""
        return total_wait(trainer) / max(1e-9, time.monotonic() - self.started)

    def summary(self, trainer: L.Trainer) -> dict[str, float]:
        """Smoothed losses, images a second and seconds, for the run's metrics file."""
        return {
            **self.smoothed,
            "images_per_second": self.rate(trainer),
            "data_wait": self.data_wait(trainer),
            "seconds": time.monotonic() - self.started,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"smoothed": self.smoothed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A run that was killed after its last step, before it wrote metrics.json, writes it when it is resumed.
        self.smoothed = state_dict["smoothed"]
        self.first_step = self.steps
