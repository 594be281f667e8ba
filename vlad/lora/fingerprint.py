"""Fingerprints of a module's weights: how adapters and recipes identify their base."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

VALUES_PER_TENSOR = 1024


def hash_module(digest: Any, name: str, module: nn.Module) -> None:
    """Adds every tensor's name, shape, dtype and up to 1024 of its values to a hash.

    Training changes nearly all values, so a sample is enough, and hashing a large model takes seconds.
    """
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}.{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        values = tensor.detach().flatten()
        step = max(1, values.numel() // VALUES_PER_TENSOR)
        digest.update(values[::step].cpu().contiguous().view(torch.uint8).numpy().tobytes())


def module_fingerprint(module: nn.Module) -> str:
    """16 hexadecimal digits of one module's weights."""
    digest = hashlib.sha256()
    hash_module(digest, "", module)
    return digest.hexdigest()[:16]
