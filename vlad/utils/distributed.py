"""Rank, world size, gathering with gradient, seeds."""

from __future__ import annotations

import hashlib
import os

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.nn.functional import all_gather
from torch.distributed.tensor import DTensor
from torch.nn import functional as F


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process speaks and writes for all: rank 0, also before the process group is up."""
    return launch_rank() == 0


def launch_rank() -> int:
    """This process's number among all of the launch, also before the process group is up."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    # torchrun's, Lightning's own, srun's.
    told = (os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ)
    return int(next(told, "0"))


def gather_with_gradient(x: Tensor) -> Tensor:
    """Rows of all ranks in rank order, (world B) D; gradients flow back to the rank that gave each row."""
    if world_size() == 1:
        return x
    return torch.cat(all_gather(x.contiguous()), dim=0)


def gather_rows_with_gradient(x: Tensor) -> Tensor:
    """Like `gather_with_gradient`, where each rank has its own number of rows (none is allowed)."""
    if world_size() == 1:
        return x
    counts = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    sizes = [int(count) for count in counts]
    padding = (0, 0) * (x.ndim - 1) + (0, max(1, *sizes) - len(x))  # the library gathers equal shapes only
    parts = all_gather(F.pad(x, padding).contiguous())
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)], dim=0)


def mean_over_ranks(total: Tensor, count: Tensor) -> Tensor:
    """The mean of the terms of all ranks, as a loss that DDP may average: `total` sums this rank's `count` terms.

    DDP averages gradients over ranks. The average of the ranks' own means is not the mean over all terms where
    counts differ; that of (world size) x total / (count of all ranks) is. So the value too is right only as an
    average over ranks. No term anywhere gives 0.
    """
    if world_size() == 1:
        return total / count.clamp_min(1)
    of_all = count.detach().clone()
    dist.all_reduce(of_all)
    return total * world_size() / of_all.clamp_min(1)


def is_sharded(x: Tensor) -> bool:
    """Whether each rank holds a part of this tensor only."""
    return isinstance(x, DTensor)


def local_shard(x: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, sharing its memory; any other tensor as it is."""
    return x.to_local() if isinstance(x, DTensor) else x


def reshard(module: nn.Module) -> None:
    """Gives back what FSDP2 gathered for a forward pass that no backward pass follows.

    A module that no other sharded one holds keeps its gathered weights until its backward pass; without one, the next
    forward pass would compute with them, though the sharded ones have been changed meanwhile.
    """
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()


def shard_like(values: Tensor, like: Tensor) -> Tensor:
    """This rank's values as its part of a tensor that is sharded as `like` is; as they are where that is not."""
    if not isinstance(like, DTensor):
        return values
    return DTensor.from_local(
        values, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def gather_shards(x: Tensor) -> Tensor:
    """All of a sharded tensor, gathered from the ranks (all must call); any other tensor as it is."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def derived_seed(*parts: int | str) -> int:
    """A seed (63 bits) that depends on every part and on nothing else, the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
