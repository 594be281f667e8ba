"""Merging LoRA adapters into a module's weights, several with a weight each, and restoring the weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vlad.lora.adapter_files import attach_adapter
from vlad.lora.inject import adapted_layers, has_adapter
from vlad.utils.errors import UserError


def merged_copy(module: nn.Module) -> nn.Module:
    """A copy of the module with its adapters merged; the module itself if it has none."""
    return copy.deepcopy(module).merge_and_unload() if has_adapter(module) else module


@torch.no_grad()
def merge_adapters(module: nn.Module, adapters: Sequence[tuple[Path, float]]) -> dict[str, Tensor]:
    """Merges adapters into the module's weights, W + sum_k w_k (W_k - W) with W_k the weights that adapter k makes.

    Every adapter is compared with the base as it was before any was merged. Returns the weights as they were, for
    `restore_weights`. Raises UserError as `attach_adapter` does; the module is then as it was.
    """
    before: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    try:
        for directory, weight in adapters:
            model = attach_adapter(module, directory)
            adapted = [f"{name}.weight" for name, _ in adapted_layers(model)]
            base = {
                name.replace(".base_layer.", "."): value for name, value in model.get_base_model().named_parameters()
            }
            before |= {name: base[name].detach().clone() for name in adapted if name not in before}
            model.merge_and_unload()
            weights = dict(module.named_parameters())
            for name in adapted:
                # One adapter at full weight is taken as it is: the difference would round.
                alone = len(adapters) == 1 and weight == 1
                change = weight * (weights[name] - before[name]) if not alone else weights[name].detach().clone()
                sums[name] = sums[name] + change if name in sums else (change if alone else before[name] + change)
            restore_weights(module, before)
    except UserError:
        restore_weights(module, before)
        raise
    restore_weights(module, sums)
    return before


@torch.no_grad()
def restore_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copies weights (by the parameters' names) into the module."""
    parameters = dict(module.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)
