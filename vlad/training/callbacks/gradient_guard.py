"""Gradient clipping, and protection against losses and gradients that are not finite.

These never reach the weights. The batches that led to them are named and kept:

    STAGE/nonfinite/step-00000012-batch-00000024-rank-0.safetensors   the batch's tensors
    STAGE/nonfinite/step-00000012-batch-00000024-rank-0.json          keys, captions, loss, seed
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch import distributed as dist
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from tqdm import tqdm

from vlad.types import Batch
from vlad.utils.distributed import gather_shards, is_sharded
from vlad.utils.errors import UserError

KEYS_NAMED = 8
# Batches of a stage that are written for inspection: a run that skips thousands of steps must not fill the disk.
MOST_KEPT = 32
# Skipped steps one after the other: nothing is learned any more.
MOST_IN_A_ROW = 100


@dataclass(frozen=True)
class Suspect:
    """A batch whose loss is not finite, or of a step whose gradient is not."""

    rank: int
    batch: int
    loss: float
    keys: tuple[str, ...]
    # The files' common path without suffix; empty where enough are kept already.
    kept: str


class GradientGuard(L.Callback):
    """Clips gradients and logs `gradient_norm`; where loss or gradient are not finite, all ranks stop or skip the step.

    A skipped step counts as a step: batch, schedule and EMA move on, the weights stay.
    """

    def __init__(self, directory: Path, clip_norm: float, policy: Literal["stop", "skip"]) -> None:
        self.directory, self.clip_norm, self.policy = directory, clip_norm, policy
        self.skipped = self.in_a_row = 0
        self.suspects: list[Suspect] = []
        self.batch: Batch | None = None
        self.loss = math.nan

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, *_: Any) -> None:
        self.batch = batch

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self.loss = float(loss.detach()) * trainer.accumulate_grad_batches
        if not math.isfinite(self.loss):
            self.suspects.append(self._keep(trainer))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        # g <- g min(1, c / |g|), c = clip_norm; infinity only measures.
        norm = clip_gradients(parameters, self.clip_norm or math.inf)
        # Under 16-mixed the loss scaler expects overflows: it skips the step and lowers its scale.
        scaled = trainer.precision == "16-mixed"
        finite = not self.suspects and (scaled or math.isfinite(float(norm)))
        if trainer.strategy.reduce_boolean_decision(finite):
            pl_module.log("gradient_norm", norm)
            self.in_a_row = 0
            return
        for parameter in parameters:
            parameter.grad = None  # the optimiser leaves such a parameter, and its moments, alone
        self._refuse(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.batch = None

    def _refuse(self, trainer: L.Trainer) -> None:
        """Names the batches of a step that must not be taken; raises where the run is to stop. All ranks call."""
        step = trainer.global_step
        found = _of_all_ranks(self.suspects)
        what = "loss"
        if not found:
            what = "gradient"
            found = _of_all_ranks([self._keep(trainer)])
        self.suspects = []
        batches = "; ".join(_described(suspect) for suspect in found)
        message = f"the {what} of step {step} is not a finite number: {batches}"
        if self.policy == "stop":
            if not trainer.is_global_zero:
                sys.exit(2)  # rank 0 reports for all
            raise UserError(
                f"{message}. Inspect these batches (docs/training.md says how); the same command resumes from the last"
                " checkpoint, and with trainer.on_nonfinite=skip skips such steps."
            )
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row == MOST_IN_A_ROW:
            if not trainer.is_global_zero:
                sys.exit(2)
            raise UserError(
                f"{message}; {MOST_IN_A_ROW} steps in a row were skipped, and nothing is learned any more."
                " Begin a new run at an earlier checkpoint (resume=PATH name=NEW) with a lower learning rate or another"
                " precision."
            )
        if trainer.is_global_zero:
            tqdm.write(
                f"warning: {message}. The step is skipped, number {self.skipped} of this stage.", file=sys.stderr
            )

    def _keep(self, trainer: L.Trainer) -> Suspect:
        """Writes the batch at hand for inspection."""
        assert self.batch is not None
        number, rank = trainer.fit_loop.epoch_loop.total_batch_idx, trainer.global_rank
        base = self.directory / f"step-{trainer.global_step:08d}-batch-{number:08d}-rank-{rank}"
        if len(list(self.directory.glob("*.json"))) >= MOST_KEPT:
            return Suspect(rank, number, self.loss, self.batch.keys, "")
        suspect = Suspect(rank, number, self.loss, self.batch.keys, str(base))
        self.directory.mkdir(parents=True, exist_ok=True)
        save_file(_tensors(self.batch), base.with_name(base.name + ".safetensors"))
        about = {"step": trainer.global_step, **asdict(suspect), "loss": repr(self.loss)}  # JSON has no nan
        about |= {"captions": self.batch.captions, "torch_seed": torch.initial_seed()}
        text = json.dumps(about, ensure_ascii=False, indent=1)
        base.with_name(base.name + ".json").write_text(text + "\n", encoding="utf-8")
        return suspect

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]


def clip_gradients(parameters: list[torch.nn.Parameter], most: float) -> Tensor:
    """Scales the gradients so that the norm of all of them, over all ranks, is at most `most`; returns that norm."""
    kinds = [[p for p in parameters if is_sharded(p) == sharded] for sharded in (False, True)]
    norms = [gather_shards(get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds if kind]
    norm = norms[0] if len(norms) == 1 else torch.stack(norms).square().sum().sqrt()
    for kind in kinds:
        clip_grads_with_norm_(kind, most, norm)
    return norm


def _described(suspect: Suspect) -> str:
    keys = ", ".join(suspect.keys[:KEYS_NAMED]) + (", ..." if len(suspect.keys) > KEYS_NAMED else "")
    kept = f"{suspect.kept}.*" if suspect.kept else f"not written: {MOST_KEPT} of this stage are"
    return f"{suspect.loss} on rank {suspect.rank} in batch {suspect.batch} with the samples {keys} ({kept})"


def _tensors(record: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of nested records by dotted names."""
    found: dict[str, Tensor] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Tensor):
            found[prefix + field.name] = value.detach().contiguous()
        elif hasattr(value, "__dataclass_fields__"):
            found |= _tensors(value, f"{prefix}{field.name}.")
    return found


def _of_all_ranks(suspects: list[Suspect]) -> list[Suspect]:
    if not (dist.is_available() and dist.is_initialized()):
        return suspects
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, suspects)
    return [suspect for of_rank in gathered for suspect in of_rank]
