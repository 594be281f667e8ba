"""The exponential average of the trainable parameters, stepped with the optimiser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn


class ExponentialAverage(L.Callback):
    """Keeps ema <- decay ema + (1 - decay) p after every optimiser step.

    The first steps use the smaller decay (1 + n) / (10 + n): the random start is forgotten at once.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self.steps = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.average:
            trained = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
            self.average = {name: p.detach().clone() for name, p in trained.items()}
        self.average = {name: value.to(pl_module.device) for name, value in self.average.items()}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.steps:
            return  # an accumulated micro-batch: the parameters have not moved
        self.steps = trainer.global_step
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        current = dict(pl_module.named_parameters())  # a phase may have frozen some of them
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.values()), [current[name].detach() for name in self.average], 1 - decay
            )

    @contextmanager
    def swapped_in(self, module: nn.Module) -> Iterator[None]:
        """Inside the block the module's trainable parameters are the averages."""
        current = dict(module.named_parameters())
        kept = {name: current[name].detach().clone() for name in self.average}
        with torch.no_grad():
            for name, value in self.average.items():
                current[name].copy_(value)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    current[name].copy_(value)

    def copy_to(self, module: nn.Module) -> None:
        """Makes the averages the module's parameters, for good."""
        current = dict(module.named_parameters())
        with torch.no_grad():
            for name, value in self.average.items():
                current[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average, self.steps = state_dict["average"], state_dict["steps"]
