"""Evaluations while a stage trains, of the weights that it would publish: averaged, in eval mode, not compiled."""

from __future__ import annotations

import contextlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from tqdm import tqdm

from vlad.training.callbacks.ema import EMA
from vlad.training.memory_savers import uncompiled
from vlad.utils.distributed import is_sharded


class PeriodicEvaluation(L.Callback, ABC):
    """Every `every_steps` steps (0: never) writes an image to `directory`, and figures into the logs."""

    def __init__(self, directory: Path, every_steps: int, ema: EMA) -> None:
        self.directory, self.every_steps, self.ema = directory, every_steps, ema
        self.evaluated_step = 0

    @abstractmethod
    def evaluate(self, path: Path) -> dict[str, float]:
        """Writes an image to `path` and returns figures, from the run's parts as they are; rank 0's count."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if not self.every_steps or step % self.every_steps or step == self.evaluated_step:
            return
        self.evaluated_step = step
        if not takes_part(trainer, pl_module):
            return
        path = self.directory / f"step-{step:08d}.png"
        metrics: dict[str, float] = {}
        with warn_if_unwritable(str(path)), publishable_weights(trainer, pl_module, self.ema):
            metrics = self.evaluate(path)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step)


def takes_part(trainer: L.Trainer, module: nn.Module) -> bool:
    """Whether this rank runs rank 0's evaluations: every rank does where each holds a part of the weights."""
    return trainer.is_global_zero or any(is_sharded(parameter) for parameter in module.parameters())


@contextmanager
def publishable_weights(trainer: L.Trainer, module: nn.Module, ema: EMA) -> Iterator[None]:
    """Inside the block the module is as it would be published now: averaged, in eval mode, not compiled."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(eval_mode(module))
        stack.enter_context(ema.swapped_in(module))
        stack.enter_context(uncompiled())
        if any(parameter.dtype == torch.bfloat16 for parameter in module.parameters()):  # bf16-true
            stack.enter_context(trainer.precision_plugin.forward_context())
        yield


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards each submodule's own mode again."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode


@contextmanager
def warn_if_unwritable(what: str) -> Iterator[None]:
    """For files that only show a run: where one cannot be written, a warning says so and training goes on."""
    try:
        yield
    except OSError as error:
        tqdm.write(f"warning: {what} cannot be written ({error}); training goes on.", file=sys.stderr)
