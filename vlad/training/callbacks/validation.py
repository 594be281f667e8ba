"""Looks at held-out images while a stage trains: when it gets no better it stops, and its best weights are kept.

A look measures three things with the averaged weights: L_diff of held-out images, L_diff of as many that are trained
on, both with the same noise every time, and how many letters of drawn held-out captions an OCR engine reads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import load_file
from torch import nn

from vlad.config.training import ValidationOptions
from vlad.training.callbacks.ema import ExponentialAverage, save_average
from vlad.training.callbacks.progress import looked_at
from vlad.utils.errors import UserError
from vlad.utils.failures import user_errors

BEST = "best.safetensors"
# Overfitting: so much above the best held-out loss, in so many looks one after the other.
RISE, LOOKS = 0.02, 2


@dataclass(frozen=True)
class Look:
    """What a look found; letters (0..1) is None where nothing was drawn."""

    held_out_loss: float
    training_loss: float
    held_out_letters: float | None = None


class EarlyStopping(L.Callback):
    """Every `every_steps` steps and at the last one a look, by rank 0; all ranks stop together.

    A look is the best so far when its held-out loss is the lowest and it reads no fewer letters than the base does,
    less `lost_letters`. The averages of the best go to `directory`/best.safetensors. The stage ends after `patience`
    looks with neither a lower loss nor more letters than all before them.
    """

    def __init__(
        self,
        directory: Path,
        options: ValidationOptions,
        average: ExponentialAverage,
        measure: Callable[[Any], Look],
        label: str,
    ) -> None:
        self.path, self.options, self.average = directory / BEST, options, average
        self.measure, self.label = measure, label
        self.looks: dict[int, Look] = {}  # by step; step 0 is the base
        self.best_step: int | None = None
        self.stale, self.has_ended, self.has_warned = 0, False, False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if 0 not in self.looks and trainer.global_step == 0:
            self._look(trainer, pl_module, 0)
        trainer.should_stop = trainer.should_stop or self.has_ended  # it was killed after its last look

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step in self.looks or step == 0 or (step % self.options.every_steps and step != trainer.max_steps):
            return
        self._look(trainer, pl_module, step)
        self.has_ended = trainer.strategy.broadcast(self.has_ended)
        if self.has_ended:
            self._say(
                trainer, f"stopped at step {step}: {self.stale} looks brought nothing; the best was {self._best()}."
            )
            trainer.should_stop = True

    def _look(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        found = Look(0.0, 0.0)
        if trainer.is_global_zero:
            with torch.no_grad(), looked_at(trainer, pl_module, self.average):
                found = self.measure(pl_module)
            named = {name: value for name, value in asdict(found).items() if value is not None}
            for logger in trainer.loggers:
                logger.log_metrics(named, step)
        found = trainer.strategy.broadcast(found)
        is_best, brings_something = step > 0 and self._is_best(found), self._brings_something(found)
        self.looks[step] = found
        if is_best:
            self.best_step = step
            if trainer.is_global_zero:
                save_average({name: value.cpu() for name, value in self.average.average.items()}, self.path)
        self.stale = 0 if brings_something else self.stale + 1
        self.has_ended = 0 < self.options.patience <= self.stale
        if not self.has_warned and self.overfits():
            self.has_warned = True
            self._say(trainer, self.advice())

    def _is_best(self, look: Look) -> bool:
        base = self.looks.get(0)
        before, now = None if base is None else base.held_out_letters, look.held_out_letters
        if before is not None and now is not None and now < before - self.options.lost_letters:
            return False
        return self.best_step is None or look.held_out_loss < self.looks[self.best_step].held_out_loss

    def _brings_something(self, look: Look) -> bool:
        """Whether a look has a lower loss, or more letters, than all before it but the base's.

        A new style costs letters at first: they are worth waiting for while they come back.
        """
        before = [other for step, other in self.looks.items() if step > 0]
        letters = [other.held_out_letters for other in before if other.held_out_letters is not None]
        reads_more = look.held_out_letters is not None and look.held_out_letters > max(letters, default=-1.0)
        return reads_more or look.held_out_loss < min((other.held_out_loss for other in before), default=torch.inf)

    def overfits(self) -> bool:
        """Whether the last looks have a held-out loss above its lowest and a training loss under the one there."""
        steps = sorted(step for step in self.looks if step > 0)
        if len(steps) <= LOOKS:
            return False
        lowest = min(steps, key=lambda step: self.looks[step].held_out_loss)
        at_lowest, last = self.looks[lowest], [self.looks[step] for step in steps if step > lowest][-LOOKS:]
        return len(last) == LOOKS and all(
            look.held_out_loss > (1 + RISE) * at_lowest.held_out_loss and look.training_loss < at_lowest.training_loss
            for look in last
        )

    def advice(self) -> str:
        """What a person should know of a stage that overfits."""
        steps = sorted(step for step in self.looks if step > 0)
        lowest = min(steps, key=lambda step: self.looks[step].held_out_loss)
        before, now = self.looks[lowest], self.looks[steps[-1]]
        return (
            f"overfitting: since step {lowest} the loss of held-out images rose from {before.held_out_loss:.4f} to"
            f" {now.held_out_loss:.4f} while that of trained ones fell from {before.training_loss:.4f} to"
            f" {now.training_loss:.4f}. The best look's weights are kept; fewer steps, validation.patience, a lower"
            " lora.rank, lora.dropout=0.1, prior.images or more images help."
        )

    def restore(self, module: nn.Module) -> None:
        """Puts the best look's weights into the module; without any to be read, says so and leaves it as it is."""
        if self.best_step is None:
            if self.looks:
                message = "no look read as many letters as the base, less validation.lost_letters; the last is kept."
                print(f"{self.label} {message}", file=sys.stderr)
            return
        try:
            with user_errors(
                f"{self.label} {self.path}: the weights of the best look (step {self.best_step})",
                unreadable="the last weights are kept",
            ):
                stored = load_file(self.path)
        except UserError as error:
            print(error, file=sys.stderr)
            self.best_step = None
            return
        current = dict(module.named_parameters())
        with torch.no_grad():
            for name, value in stored.items():
                current[name].copy_(value)

    def metrics(self) -> dict[str, float]:
        """The base's look, the best one (else the last) and its step, whether the stage overfitted."""
        if not self.looks:
            return {}
        chosen = self.best_step if self.best_step is not None else max(self.looks)
        found: dict[str, float] = {"best_step": chosen, "overfits": float(self.has_warned)}
        for prefix, step in (("base_", 0), ("", chosen)):
            if step in self.looks:
                values = asdict(self.looks[step]).items()
                found |= {f"{prefix}{name}": value for name, value in values if value is not None}
        return found

    def _best(self) -> str:
        return f"step {self.best_step}" if self.best_step is not None else "none"

    def _say(self, trainer: L.Trainer, message: str) -> None:
        if trainer.is_global_zero:
            print(f"\n{self.label} {message}", file=sys.stderr)

    def state_dict(self) -> dict[str, Any]:
        return {
            "looks": {step: asdict(look) for step, look in self.looks.items()},
            "best_step": self.best_step,
            "stale": self.stale,
            "has_ended": self.has_ended,
            "has_warned": self.has_warned,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.looks = {step: Look(**look) for step, look in state_dict["looks"].items()}
        self.best_step, self.stale = state_dict["best_step"], state_dict["stale"]
        self.has_ended, self.has_warned = state_dict["has_ended"], state_dict["has_warned"]
