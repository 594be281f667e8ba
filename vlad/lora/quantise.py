"""Quantisation of a frozen base to 4 or 8 bits, for adapters on top (QLoRA, arXiv 2305.14314).

Only the matrices of linear layers; convolutions, norms and embeddings stay as they are. bitsandbytes packs a matrix
when it is moved to the GPU.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from vlad.utils.errors import UserError, install_command

LEAST_VALUES = 4096  # of a matrix: smaller ones save nothing, and bitsandbytes leaves them out as well


def check_quantisation() -> None:
    """Raises UserError where a quantised base cannot run."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"lora.base_bits needs bitsandbytes, which is not installed; run: {install_command('quantised')}, or set"
            " lora.base_bits=null."
        )
    if not torch.cuda.is_available():
        raise UserError("lora.base_bits needs a GPU, and torch finds none here; set lora.base_bits=null.")


def quantise(module: nn.Module, bits: int) -> nn.Module:
    """Replaces the module's linear layers, in place, by frozen 4-bit (NF4) or 8-bit ones.

    Layers inside torch's own attention stay: it reads their weights itself.
    """
    import bitsandbytes

    for name, child in list(module.named_children()):
        if isinstance(child, nn.MultiheadAttention):
            continue
        if type(child) is not nn.Linear or child.weight.numel() < LEAST_VALUES:
            quantise(child, bits)
            continue
        arguments = child.in_features, child.out_features, child.bias is not None
        weight = child.weight.detach()
        packed: Any
        if bits == 4:
            packed = bitsandbytes.nn.Linear4bit(*arguments, quant_type="nf4")
            packed.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=packed)
        else:
            packed = bitsandbytes.nn.Linear8bitLt(*arguments, has_fp16_weights=False)
            packed.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        if child.bias is not None:
            packed.bias = nn.Parameter(child.bias.detach(), requires_grad=False)
        setattr(module, name, packed)
    # peft chooses its layer classes by these.
    module.is_loaded_in_4bit, module.is_loaded_in_8bit = bits == 4, bits == 8  # type: ignore[assignment]
    return module
