"""Optimiser and learning rate: AdamW, a linear warm-up, a plateau, a cosine to zero."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from vlad.config.training import OptimOptions
from vlad.utils.distributed import is_sharded
from vlad.utils.errors import UserError, install_command

NAMES = "names"  # of a group's parameters


def build_optimizer(
    module: nn.Module,
    options: OptimOptions,
    trained: Collection[str] | None = None,
    learning_rates: Mapping[str, float] | None = None,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """AdamW over the `trained` parameters, or those that require gradients.

    Matrices decay; vectors (biases, norms, temperature) and embedding tables do not. `learning_rates`: of the
    parameters that have another than the options'.
    """
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    names = {name for name, p in module.named_parameters() if p.requires_grad} if trained is None else set(trained)
    rates = learning_rates or {}
    groups: dict[tuple[float, bool, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in module.named_parameters():
        if name in names:
            decays = parameter.ndim >= 2 and id(parameter) not in tables
            # One kernel takes a whole group, and no kernel takes sharded and whole parameters together.
            kind = (rates.get(name, options.learning_rate), decays, is_sharded(parameter))
            groups.setdefault(kind, []).append((name, parameter))
    # The stage's own rate first, and in it what decays: an order that does not depend on names.
    order = sorted(groups, key=lambda kind: (kind[0] != options.learning_rate, kind[0], not kind[1], kind[2]))
    listed: list[dict[str, Any]] = [
        {
            "params": [parameter for _, parameter in groups[kind]],
            NAMES: [name for name, _ in groups[kind]],
            "lr": kind[0],
            "weight_decay": options.weight_decay if kind[1] else 0.0,
        }
        for kind in order
    ]
    betas = (options.beta1, options.beta2)
    optimizer: torch.optim.Optimizer
    if options.optimizer == "adamw-8bit":
        optimizer = _adamw_8bit()(listed, lr=options.learning_rate, betas=betas)
    else:
        optimizer = torch.optim.AdamW(listed, lr=options.learning_rate, betas=betas, fused=fused and options.fused)
    optimizer.register_load_state_dict_pre_hook(_moments_alone)
    return optimizer


def _moments_alone(optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> dict[str, Any]:
    """A stored state with the moments of each parameter, and the groups and options of the optimiser that loads it.

    Rates, decay and betas are what the config says now. Groups follow from the rates: parameters are found by their
    names, and by their numbers in checkpoints of 0.1, which hold none.
    """
    now = optimizer.state_dict()["param_groups"]
    if any(NAMES not in group for group in stored["param_groups"]):
        sizes = [[len(group["params"]) for group in groups] for groups in (now, stored["param_groups"])]
        if sizes[0] != sizes[1]:
            raise UserError(
                "The checkpoint's optimiser has other groups of parameters; keep the components' learning rates as they"
                " were, or begin anew from that run's weights (base=...)."
            )
        return {"state": stored["state"], "param_groups": now}
    numbers = {
        name: number
        for group in stored["param_groups"]
        for name, number in zip(group[NAMES], group["params"], strict=True)
    }
    state = {
        number: stored["state"][numbers[name]]
        for group in now
        for name, number in zip(group[NAMES], group["params"], strict=True)
        if numbers.get(name) in stored["state"]
    }
    return {"state": state, "param_groups": now}


class Schedule(torch.optim.lr_scheduler.LambdaLR):
    """The learning rate of each group, by `learning_rate_factor`. A checkpoint restores the step alone."""

    def __init__(self, optimizer: torch.optim.Optimizer, options: OptimOptions) -> None:
        super().__init__(optimizer, lambda step: learning_rate_factor(step, options))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        rates = [base * factor(self.last_epoch) for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = rates


def _adamw_8bit() -> Any:
    """bitsandbytes' AdamW; moments of matrices below 4096 values stay in float32."""
    try:
        import bitsandbytes  # an optional extra, and slow to import
    except ImportError as error:
        raise UserError(
            f"train: optimizer: adamw-8bit needs bitsandbytes; {install_command('quantised')}, or set it to adamw."
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
