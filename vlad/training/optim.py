"""Optimiser and learning rate: AdamW, a linear warm-up, a plateau, a cosine to zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from vlad.errors import UserError
from vlad.training.posthoc import MAX_WIDTH


@dataclass(frozen=True)
class OptimOptions:
    """How one stage is trained. Shares are of the stage's steps."""

    steps: int = 1000
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    warmup_steps: int = 100
    # Where the cosine to zero begins: 0.4 leaves it the last 60 % of the steps.
    constant_share: float = 0.4
    clip_grad_norm: float = 1.0
    accumulate_batches: int = 1
    ema_decay: float = 0.99
    # Further averages beside it: by half-life in steps; and power-function ones by width (a share of the training),
    # with snapshots from which an average of any width can be had afterwards.
    ema_half_lives: tuple[float, ...] = ()
    ema_power_widths: tuple[float, ...] = ()
    ema_snapshot_every_steps: int = 0
    # Averages in main memory: for models that leave no room for them beside themselves.
    ema_on_cpu: bool = False
    # Autocast of this stage; None: trainer.precision. On a CPU bf16 pays for wide layers only.
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.learning_rate <= 0 or self.accumulate_batches < 1:
            raise UserError("train: steps, learning_rate and accumulate_batches must be positive.")
        if min(self.weight_decay, self.warmup_steps, self.clip_grad_norm) < 0 or not 0 <= self.constant_share <= 1:
            raise UserError(
                "train: weight_decay, warmup_steps and clip_grad_norm must not be negative, and constant_share is a"
                " share, 0 to 1."
            )
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"train: ema_decay must be at least 0 and less than 1, not {self.ema_decay}.")
        if not all(steps > 0 for steps in self.ema_half_lives):
            raise UserError("train: ema_half_lives are numbers of steps, above 0.")
        if not all(0.001 <= width <= MAX_WIDTH for width in self.ema_power_widths):
            raise UserError(f"train: ema_power_widths are shares of the training, from 0.001 to {MAX_WIDTH}.")
        if self.ema_snapshot_every_steps < 0 or bool(self.ema_snapshot_every_steps) != bool(self.ema_power_widths):
            raise UserError("train: ema_power_widths and ema_snapshot_every_steps go together; set both or neither.")


def build_optimizer(module: nn.Module, options: OptimOptions, fused: bool = False) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; matrices decay, vectors (biases, norms, temperature) and tables do not."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = [p for p in parameters if p.ndim >= 2 and id(p) not in tables]
    plain = [p for p in parameters if p.ndim < 2 or id(p) in tables]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=options.learning_rate,
        betas=(options.beta1, options.beta2),
        fused=fused,
    )


def learning_rate_factor(step: int, options: OptimOptions) -> float:
    """The factor on the learning rate at an optimiser step."""
    warmup = min(1.0, (step + 1) / max(1, options.warmup_steps))
    decay_start = options.constant_share * options.steps
    if step < decay_start:
        return warmup
    progress = min(1.0, (step - decay_start) / max(1.0, options.steps - decay_start))
    return warmup * 0.5 * (1 + math.cos(math.pi * progress))
