"""Optimiser and learning rate: AdamW, a linear warm-up, a plateau, a cosine to zero."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from vlad.distributed import is_sharded
from vlad.errors import UserError
from vlad.training.posthoc import MAX_WIDTH
from vlad.training.precision import Precision


@dataclass(frozen=True)
class OptimOptions:
    """How one stage is trained. Shares are of the stage's steps."""

    # 0 leaves the layout stage of a run with a base as the base has it.
    steps: int = 1000
    learning_rate: float = 1e-3
    # adamw-8bit keeps the moments of large matrices in 8 bits (extra 8bit): 2 bytes a parameter in place of 8.
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    # One kernel for the whole step; 16-mixed goes without, as its loss scaler must see the gradients before.
    fused: bool = True
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
    # Autocast of this stage; None: trainer.precision. On a CPU bf16 pays for wide layers only, and where the CPU lacks
    # it float32 takes its place.
    precision: Precision | None = None

    def __post_init__(self) -> None:
        if self.steps < 0 or self.learning_rate <= 0 or self.accumulate_batches < 1:
            raise UserError("train: steps must not be negative, learning_rate and accumulate_batches be positive.")
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


def build_optimizer(
    module: nn.Module,
    options: OptimOptions,
    trained: Collection[str] | None = None,
    learning_rates: Mapping[str, float] | None = None,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """AdamW over the `trained` parameters, or those that want gradients; matrices decay, vectors (biases, norms,
    temperature) and tables do not. `learning_rates`: those of parameters that have another than the options'."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    names = {name for name, p in module.named_parameters() if p.requires_grad} if trained is None else set(trained)
    rates = learning_rates or {}
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if name in names:
            decays = parameter.ndim >= 2 and id(parameter) not in tables
            # One kernel takes a whole group, and no kernel takes sharded and whole parameters together.
            kind = (rates.get(name, options.learning_rate), decays, is_sharded(parameter))
            groups.setdefault(kind, []).append(parameter)
    # The stage's own rate first, and in it what decays: an order that does not hang on the names.
    order = sorted(groups, key=lambda kind: (kind[0] != options.learning_rate, kind[0], not kind[1], kind[2]))
    listed: list[dict[str, Any]] = [
        {"params": groups[kind], "lr": kind[0], "weight_decay": options.weight_decay if kind[1] else 0.0}
        for kind in order
    ]
    betas = (options.beta1, options.beta2)
    if options.optimizer == "adamw-8bit":
        return _adamw_8bit()(listed, lr=options.learning_rate, betas=betas)
    return torch.optim.AdamW(listed, lr=options.learning_rate, betas=betas, fused=fused and options.fused)


def _adamw_8bit() -> Any:
    """bitsandbytes' AdamW; moments of matrices below 4096 values stay in float32."""
    try:
        import bitsandbytes  # an optional extra, and slow to import
    except ImportError as error:
        raise UserError(
            "train: optimizer: adamw-8bit needs bitsandbytes; pip install 'vlad[quantised]', or set it to adamw."
        ) from error
    return bitsandbytes.optim.AdamW8bit


def check_optimizer(options: OptimOptions, device: torch.device) -> None:
    """Raises UserError where 8-bit AdamW is asked for and its kernel does not run on the device."""
    if options.optimizer == "adamw":
        return
    parameter = nn.Parameter(torch.zeros(64, 64, device=device))  # no smaller one is kept in 8 bits
    parameter.grad = torch.ones_like(parameter)
    optimizer = _adamw_8bit()([parameter], lr=1.0)
    try:
        optimizer.step()
    except Exception as error:  # whatever the library's backends raise where they lack the kernel
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"train: optimizer: adamw-8bit does not run on this {device.type} ({reason}); set it to adamw."
        ) from error


def learning_rate_factor(step: int, options: OptimOptions) -> float:
    """The factor on the learning rate at an optimiser step."""
    warmup = min(1.0, (step + 1) / max(1, options.warmup_steps))
    decay_start = options.constant_share * options.steps
    if step < decay_start:
        return warmup
    progress = min(1.0, (step - decay_start) / max(1.0, options.steps - decay_start))
    return warmup * 0.5 * (1 + math.cos(math.pi * progress))
