"""Validation passes on held-out images, early stopping, and the best weights.

A pass measures three things with the averaged weights: L_diff of held-out images, L_diff of as many training images,
both with the same noise every time, and the share of letters that an OCR engine reads in images of held-out captions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from vlad.config.schema import Config
from vlad.config.training import ValidationOptions
from vlad.data.collate import collate
from vlad.data.dataset import first_samples
from vlad.data.shard_sets import ShardSets
from vlad.metrics.ocr import default_enlarge_factor, run_ocr
from vlad.metrics.spelling import letter_accuracy
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.training.build import build_pipeline
from vlad.training.callbacks.ema import EMA
from vlad.training.callbacks.periodic_evaluation import publishable_weights
from vlad.training.parts import Parts
from vlad.training.stages import LayoutStage, RefineStage
from vlad.types import Batch, Sample
from vlad.utils.atomic_files import save_tensors
from vlad.utils.distributed import derived_seed
from vlad.utils.errors import UserError
from vlad.utils.failures import user_errors

BEST = "best.safetensors"
LOSS_PASSES = 4  # over the images of a set, each with other noise and timesteps
# Overfitting: a held-out loss that much above its lowest, in that many passes in a row.
OVERFIT_RISE, OVERFIT_PASSES = 0.02, 2


@dataclass(frozen=True)
class ValidationResult:
    """The figures of one pass; letters (0..1) is None where no images were generated."""

    held_out_loss: float
    training_loss: float
    held_out_letters: float | None = None


class HeldOutEvaluation:
    """Measures a stage on held-out images and on as many training images, always with the same noise.

    In the refine stage the OCR engine also reads images that are generated for held-out captions on their true layouts.
    """

    def __init__(self, config: Config, parts: Parts, shards: ShardSets, held_out: ShardSets, stage: str) -> None:
        self.config, self.parts = config, parts
        options, stream = config.validation, config.data.stream(config.seed)
        held = first_samples(held_out, stream, options.images)
        self.held_out = self._batches(held)
        self.training = self._batches(first_samples(shards, stream, len(held)))
        with_text = [sample for sample in held if any(line.valid for line in sample.layout.lines)]
        self.to_read = with_text[: options.read_images] if stage == "refine" else []

    def __call__(self, stage: LayoutStage | RefineStage) -> ValidationResult:
        letters = self._letters_read() if self.to_read else None
        return ValidationResult(self._loss(stage, self.held_out), self._loss(stage, self.training), letters)

    def _batches(self, samples: list[Sample]) -> list[Batch]:
        size = self.config.data.batch_size
        return [collate(samples[start : start + size]) for start in range(0, len(samples), size)]

    def _loss(self, stage: LayoutStage | RefineStage, batches: list[Batch]) -> float:
        total = count = 0.0
        devices = [stage.device] if stage.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            for turn in range(LOSS_PASSES):
                for number, batch in enumerate(batches):
                    torch.manual_seed(derived_seed(self.config.seed, "look", turn, number))
                    total += float(stage.held_out_loss(batch.to(stage.device))) * len(batch.keys)
                    count += len(batch.keys)
        return total / count

    def _letters_read(self) -> float:
        """The share (0..1) of letters that the OCR engine reads in generated images."""
        pipeline, samples = build_pipeline(self.config, self.parts), self.to_read
        prompts = [parse_prompt(sample.caption, strict=False) for sample in samples]
        images = pipeline.refine(prompts, list(range(len(samples))), [sample.layout for sample in samples])
        factor = default_enlarge_factor(self.config.data.image_pixels, self.config.data.image_pixels)
        readings = list(run_ocr("rapidocr", [np.asarray(image) for image in images], factor))
        wanted = [[line.text for line in sample.layout.lines if line.valid] for sample in samples]
        return letter_accuracy(readings, wanted)


class Validation(L.Callback):
    """A pass before the first step, every `every_steps` steps and at the last one, on rank 0; all ranks stop together.

    A pass is the best so far when its held-out loss is the lowest and OCR reads no fewer letters than in the base's
    images, less `lost_letters`. The averages of the best go to `directory`/best.safetensors. The stage ends after
    `patience` passes with neither a lower loss nor more letters than all before them.
    """

    def __init__(
        self,
        directory: Path,
        options: ValidationOptions,
        ema: EMA,
        evaluate: Callable[[Any], ValidationResult],
        label: str,
    ) -> None:
        self.path, self.options, self.ema = directory / BEST, options, ema
        self.evaluate, self.label = evaluate, label
        self.results: dict[int, ValidationResult] = {}  # by step; step 0 is the base
        self.best_step: int | None = None
        self.stale, self.has_ended, self.has_warned = 0, False, False

    @property
    def state_key(self) -> str:
        """As in checkpoints of version 0.1."""
        return "EarlyStopping"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if 0 not in self.results and trainer.global_step == 0:
            self._validate(trainer, pl_module, 0)
        trainer.should_stop = trainer.should_stop or self.has_ended  # it was killed after its last pass

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step in self.results or step == 0 or (step % self.options.every_steps and step != trainer.max_steps):
            return
        self._validate(trainer, pl_module, step)
        self.has_ended = trainer.strategy.broadcast(self.has_ended)
        if self.has_ended:
            best = f"step {self.best_step}" if self.best_step is not None else "none"
            self._print(
                trainer,
                f"stopped at step {step}: {self.stale} validation passes without improvement; the best was {best}.",
            )
            trainer.should_stop = True

    def _validate(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        result = ValidationResult(0.0, 0.0)
        if trainer.is_global_zero:
            with torch.no_grad(), publishable_weights(trainer, pl_module, self.ema):
                result = self.evaluate(pl_module)
            named = {name: value for name, value in asdict(result).items() if value is not None}
            for logger in trainer.loggers:
                logger.log_metrics(named, step)
        result = trainer.strategy.broadcast(result)
        is_best, improves = step > 0 and self._is_best(result), self._improves(result)
        self.results[step] = result
        if is_best:
            self.best_step = step
            if trainer.is_global_zero:
                save_tensors({name: value.cpu() for name, value in self.ema.average.items()}, self.path)
        self.stale = 0 if improves else self.stale + 1
        self.has_ended = 0 < self.options.patience <= self.stale
        if not self.has_warned and self.overfits():
            self.has_warned = True
            self._print(trainer, self.overfitting_warning())

    def _is_best(self, result: ValidationResult) -> bool:
        base = self.results.get(0)
        before, now = None if base is None else base.held_out_letters, result.held_out_letters
        if before is not None and now is not None and now < before - self.options.lost_letters:
            return False
        return self.best_step is None or result.held_out_loss < self.results[self.best_step].held_out_loss

    def _improves(self, result: ValidationResult) -> bool:
        """Whether a pass has a lower loss, or more letters, than all before it but the base's.

        A new style costs letters at first: it is worth waiting while they come back.
        """
        before = [other for step, other in self.results.items() if step > 0]
        letters = [other.held_out_letters for other in before if other.held_out_letters is not None]
        reads_more = result.held_out_letters is not None and result.held_out_letters > max(letters, default=-1.0)
        return reads_more or result.held_out_loss < min((other.held_out_loss for other in before), default=torch.inf)

    def overfits(self) -> bool:
        """Whether the last passes have a held-out loss above its lowest and a training loss under the one there."""
        steps = sorted(step for step in self.results if step > 0)
        if len(steps) <= OVERFIT_PASSES:
            return False
        lowest = min(steps, key=lambda step: self.results[step].held_out_loss)
        at_lowest = self.results[lowest]
        last = [self.results[step] for step in steps if step > lowest][-OVERFIT_PASSES:]
        return len(last) == OVERFIT_PASSES and all(
            result.held_out_loss > (1 + OVERFIT_RISE) * at_lowest.held_out_loss
            and result.training_loss < at_lowest.training_loss
            for result in last
        )

    def overfitting_warning(self) -> str:
        """How the losses moved, and what helps."""
        steps = sorted(step for step in self.results if step > 0)
        lowest = min(steps, key=lambda step: self.results[step].held_out_loss)
        before, now = self.results[lowest], self.results[steps[-1]]
        return (
            f"overfitting: since step {lowest} the held-out loss rose from {before.held_out_loss:.4f} to"
            f" {now.held_out_loss:.4f} while the training loss fell from {before.training_loss:.4f} to"
            f" {now.training_loss:.4f}. The best pass's weights are kept; fewer steps, validation.patience, a lower"
            " lora.rank, lora.dropout=0.1, prior.images or more images help."
        )

    def restore_best(self, module: nn.Module) -> None:
        """Puts the best pass's weights into the module; without any, says so and keeps the last."""
        if self.best_step is None:
            if self.results:
                message = "no validation pass read as many letters as the base, less validation.lost_letters;"
                print(f"{self.label} {message} the last weights are kept.", file=sys.stderr)
            return
        try:
            with user_errors(
                f"{self.label} {self.path}: the weights of the best validation pass (step {self.best_step})",
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
        """The base's figures, those of the best pass (else the last) with its step, whether the stage overfitted."""
        if not self.results:
            return {}
        chosen = self.best_step if self.best_step is not None else max(self.results)
        metrics: dict[str, float] = {"best_step": chosen, "overfits": float(self.has_warned)}
        for prefix, step in (("base_", 0), ("", chosen)):
            if step in self.results:
                values = asdict(self.results[step]).items()
                metrics |= {f"{prefix}{name}": value for name, value in values if value is not None}
        return metrics

    def _print(self, trainer: L.Trainer, message: str) -> None:
        if trainer.is_global_zero:
            print(f"\n{self.label} {message}", file=sys.stderr)

    def state_dict(self) -> dict[str, Any]:
        return {
            "looks": {step: asdict(result) for step, result in self.results.items()},
            "best_step": self.best_step,
            "stale": self.stale,
            "has_ended": self.has_ended,
            "has_warned": self.has_warned,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.results = {step: ValidationResult(**result) for step, result in state_dict["looks"].items()}
        self.best_step, self.stale = state_dict["best_step"], state_dict["stale"]
        self.has_ended, self.has_warned = state_dict["has_ended"], state_dict["has_warned"]
