"""Fully sharded training (FSDP2): each rank holds a part of every large matrix and of its gradient, moments and EMA.

    UNets        sharded: each ResNet block and transformer block is gathered when it is used, the rest with the UNet
    LVLM         its repeated layers, of text and of the vision tower, are sharded
    all else     whole on every rank (CCM, heads, embeddings, autoencoder); gradients averaged after each backward pass

Lightning's ModelParallelStrategy makes the mesh and the process group. Its checkpoints would be written in place, with
a pickled index; ours go through the same writer as all others, a file a rank (callbacks/checkpointing.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.fabric.utilities.optimizer import _optimizer_to_device
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from vlad.utils.distributed import is_sharded, local_shard, shard_like

UNET_BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock")


def shard(stage: nn.Module, mesh: DeviceMesh) -> None:
    """Shards the UNet and the LVLM's layers of a stage over the ranks of the mesh, in place."""
    unet, text_side = getattr(stage, "unet", None), getattr(stage, "text_side", None)
    sharded: list[FSDPModule] = []
    if unet is not None:
        unet.to(memory_format=torch.contiguous_format)  # a part is cut from the first dimension of plain memory
        sharded += [fully_shard(m, mesh=mesh) for m in unet.modules() if type(m).__name__ in UNET_BLOCKS]
        sharded.append(fully_shard(unet, mesh=mesh))
    if text_side is not None:
        for tower, layers in _towers(text_side.lvlm):
            sharded += [fully_shard(layer, mesh=mesh) for layer in layers]
            # The tower owns nothing else: as an FSDP module it only prefetches its layers in turn.
            rest = set(tower.parameters()) - {p for layer in layers for p in layer.parameters()}
            sharded.append(fully_shard(tower, mesh=mesh, ignored_params=rest))
    if mesh.device_type == "cpu":
        for module in sharded:
            module.set_force_sum_reduction_for_comms(True)  # gloo has no average


def sharded_parameters(unet: nn.Module, text_side: Any) -> set[int]:
    """The ids of the parameters that `shard` shards in a stage with this UNet and text side."""
    layers = [layer for _, of_tower in _towers(text_side.lvlm) for layer in of_tower]
    return {id(parameter) for module in (unet, *layers) for parameter in module.parameters()}


def _towers(lvlm: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """The modules of an LVLM that own a list of repeated layers, with these layers."""
    names = {name for module in lvlm.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    for module in lvlm.modules():
        for child in module.children():
            if isinstance(child, nn.ModuleList) and len(child) and type(child[0]).__name__ in names:
                yield module, list(child)


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy with our checkpoints: every rank's part goes to the run's writer."""

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        # Data parallel alone; known only now, when the processes are.
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def post_backward(self, closure_loss: Tensor) -> None:
        """Averages the gradients of what every rank holds whole; those that are sharded are averaged already."""
        assert self.lightning_module is not None
        # The same on every rank: whether a parameter has a gradient does not depend on the batch.
        gradients = [p.grad for p in self.lightning_module.parameters() if p.grad is not None and not is_sharded(p)]
        if not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return Strategy.optimizer_state(self, optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Every rank writes its own part; the writer publishes the checkpoint when all are there."""
        self.checkpoint_io.save_checkpoint(_local_parts(checkpoint), filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        parameters = dict(self.lightning_module.named_parameters())
        with torch.no_grad():
            for name, values in checkpoint["state_dict"].items():
                local_shard(parameters[name]).copy_(values)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)
            _optimizer_to_device(optimizer, self.root_device)
            for parameter, moments in optimizer.state.items():
                for name, values in moments.items():
                    if isinstance(values, Tensor) and values.shape == local_shard(parameter).shape:
                        moments[name] = shard_like(values, parameter)


def _local_parts(content: Any) -> Any:
    """Nested dicts and lists with this rank's part of every sharded tensor."""
    if isinstance(content, Tensor):
        return local_shard(content)
    if isinstance(content, dict):
        return {name: _local_parts(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(_local_parts(value) for value in content)
    return content
