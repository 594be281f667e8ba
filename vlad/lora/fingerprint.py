"""Which weights a module holds, in a few digits: how an adapter and a recipe know their base."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

VALUES_PER_TENSOR = 1024


def add_module(digest: Any, name: str, module: nn.Module) -> None:
    """Adds to a hash of every tensor the name, the shape, the type and up to 1024 values spread over it.

    Training moves nearly all values, and a large model is read in seconds.
    """
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}.{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        values = tensor.detach().flatten()
        step = max(1, values.numel() // VALUES_PER_TENSOR)
        digest.update(values[::step].cpu().contiguous().view(torch.uint8).numpy().tobytes())


def module_fingerprint(module: nn.Module) -> str:
    """16 hexadecimal digits of one module's weights."""
    digest = hashlib.sha256()
    add_module(digest, "", module)
    return digest.hexdigest()[:16]
