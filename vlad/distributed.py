"""Rank, world size, gathering with gradient, seeds."""

from __future__ import annotations

import hashlib
import os

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.nn.functional import all_gather


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process speaks and writes for all: rank 0, also before the process group is up."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0 and rank() == 0


def gather_with_gradient(x: Tensor) -> Tensor:
    """Rows of all ranks in rank order, (world B) D; gradients flow back to the rank that gave each row."""
    if world_size() == 1:
        return x
    return torch.cat(all_gather(x.contiguous()), dim=0)


def derived_seed(*parts: int | str) -> int:
    """A seed (63 bits) that depends on every part and on nothing else, the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
