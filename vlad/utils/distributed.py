"""Distributed training: ranks, gathering with gradients, shards of FSDP2, derived seeds."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.nn.functional import all_gather
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from vlad.utils.launcher import current_launch


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process prints and writes for all: rank 0, also before the process group exists."""
    return launch_rank() == 0


def launch_rank() -> int:
    """This process's rank in the launch, also before the process group exists."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else current_launch().rank


def gather_with_gradient(x: Tensor) -> Tensor:
    """Rows of all ranks in rank order, (world B) D; gradients flow back to the rank of each row."""
    if world_size() == 1:
        return x
    return torch.cat(all_gather(x.contiguous()), dim=0)


def gather_rows_with_gradient(x: Tensor) -> Tensor:
    """Like `gather_with_gradient`, for a different number of rows on each rank (0 is allowed)."""
    if world_size() == 1:
        return x
    counts = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    sizes = [int(count) for count in counts]
    padding = (0, 0) * (x.ndim - 1) + (0, max(1, *sizes) - len(x))  # only equal shapes can be gathered
    parts = all_gather(F.pad(x, padding).contiguous())
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)], dim=0)


def mean_over_ranks(total: Tensor, count: Tensor) -> Tensor:
    """The mean over the terms of all ranks, as a loss whose gradients DDP averages: `total` sums this rank's `count`.

    DDP averages gradients over ranks. Where counts differ, the average of the ranks' means is not the mean over all
    terms; the average of (world size) x total / (count of all ranks) is. So the value, too, is correct only as an
    average over ranks. Without any terms it is 0.
    """
    if world_size() == 1:
        return total / count.clamp_min(1)
    total_count = count.detach().clone()
    dist.all_reduce(total_count)
    return total * world_size() / total_count.clamp_min(1)


def is_sharded(x: Tensor) -> bool:
    """Whether each rank holds only a shard of this tensor."""
    return isinstance(x, DTensor)


def local_shard(x: Tensor) -> Tensor:
    """This rank's shard of a sharded tensor, sharing its memory; any other tensor unchanged."""
    return x.to_local() if isinstance(x, DTensor) else x


def reshard(module: nn.Module) -> None:
    """Frees the weights that FSDP2 gathered for a forward pass without a backward pass.

    A root FSDP module keeps its gathered weights until its backward pass. Without one, the next forward pass would use
    them although the shards have changed meanwhile.
    """
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()


def shard_like(values: Tensor, like: Tensor) -> Tensor:
    """This rank's values as its shard of a tensor that is sharded like `like`; unchanged where `like` is whole."""
    if not isinstance(like, DTensor):
        return values
    return DTensor.from_local(
        values, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def gather_shards(x: Tensor) -> Tensor:
    """A sharded tensor in full, gathered from all ranks (all must call this); any other tensor unchanged."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def derived_seed(*parts: int | str) -> int:
    """A seed of 63 bits that is determined by its parts alone, the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
