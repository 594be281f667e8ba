"""Peak memory of a training step, traced on fake tensors.

Every operation of the forward and the backward pass runs on shapes alone (torch's fake tensors), so a step of any model
at any size is traced in seconds and in no memory; each result is counted when it is made and again when it is freed.
Workspaces inside kernels are not seen.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlad.models.attention import set_attention
from vlad.models.autoencoder import encode
from vlad.models.unet import denoise
from vlad.types import BaseTextStates, Conditioning


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make inside the block: `now`, and `peak`.

    `sweeps`: before a new peak counts, what nothing but a circle of references holds is freed. Frames of a
    recomputation hold each other, and what they have made, until then.
    """

    def __init__(self, sweeps: bool = False) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sweeps = sweeps
        self._swept = 1_000_000  # bytes at the last sweep
        self._known: set[int] = set()

    def __enter__(self) -> LiveBytes:
        if self._sweeps:
            gc.freeze()  # a sweep looks at what was made since: without this each goes over all of torch, 0.2 s long
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        if self._sweeps:
            gc.unfreeze()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        new = [storage for storage in _storages(result) if storage._cdata not in self._known]
        if new:
            # A view of what was there before the block, a weight for one, makes nothing.
            given = {storage._cdata for storage in _storages((args, kwargs))}
            for storage in new:
                if storage._cdata not in given:
                    self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        weakref.finalize(storage, self._freed, key, size)
        if self.now > self.peak:
            if self._sweeps and self.now > 1.03 * self._swept:
                gc.collect()
                self._swept = self.now
            self.peak = max(self.peak, self.now)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class StepShape:
    """The inputs and options of a UNet's training step.

    `tokens` are t's, `base_tokens` the base's own (0: none). `autocast`: the precision of most operations, None for
    float32. `frozen`: the precision in which frozen matrices are stored, None as they are. `recompute`: activation
    checkpointing. `has_gradients`: gradients of earlier batches are there already (accumulation).
    """

    batch: int
    height: int
    width: int
    tokens: int
    text_width: int
    base_tokens: int = 0
    autocast: torch.dtype | None = None
    frozen: torch.dtype | None = None
    recompute: bool = False
    has_gradients: bool = False


def traced_step_bytes(unet: Any, shape: StepShape) -> int:
    """Bytes beside the weights at the fullest moment of a forward and backward pass, gradients included."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        shell = _shell(unet, shape)
        inputs = _inputs(shell, shape)
        live = LiveBytes(sweeps=shape.recompute)
        cast = nullcontext() if shape.autocast is None else torch.autocast("cpu", dtype=shape.autocast)
        with live:
            if shape.has_gradients:
                for parameter in shell.parameters():
                    if parameter.requires_grad:
                        parameter.grad = torch.zeros_like(parameter)
            with cast:
                loss = denoise(shell, *inputs).float().square().mean()
            loss.backward()
    return live.peak


def traced_encoding_bytes(autoencoder: Any, batch: int, height: int, width: int) -> int:
    """Bytes beside the weights at the fullest moment of encoding images of a size in pixels, in float32."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        shell = _hollow(autoencoder).eval()
        pixels = torch.empty(batch, 3, height, width)
        live = LiveBytes()
        with live:
            encode(shell, pixels)
    return live.peak


def _shell(unet: Any, shape: StepShape) -> Any:
    """The UNet without data, set as the shape says."""
    shell = _hollow(unet, shape.frozen)
    base = shell.get_base_model() if hasattr(shell, "get_base_model") else shell
    if shape.recompute:
        base.enable_gradient_checkpointing()
    else:
        base.disable_gradient_checkpointing()
    set_attention([base], "sdpa", torch.device("cpu"))  # the other kernels have no operations to trace
    return shell.train()


def _hollow(module: Any, frozen: torch.dtype | None = None) -> Any:
    """The module with parameters of the same shapes, precisions and `requires_grad`, and no data.

    `frozen`: the precision of frozen matrices; None: as they are.
    """
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        dtype = parameter.dtype
        if frozen is not None and not parameter.requires_grad and parameter.ndim > 1:
            dtype = frozen
        empty = torch.empty(parameter.shape, dtype=dtype)
        if parameter.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
            empty = empty.contiguous(memory_format=torch.channels_last)
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return copy.deepcopy(module, memo)


def _inputs(unet: Any, shape: StepShape) -> tuple[Tensor, Tensor, Conditioning, Tensor | None]:
    """x_t, timesteps, t and z, without data."""
    config, size = unet.config, (shape.height, shape.width)
    cells = (shape.batch, config.out_channels, *size)
    own = None
    if shape.base_tokens:
        states = torch.empty(shape.batch, shape.base_tokens, config.cross_attention_dim)
        pooled = None
        if config.addition_embed_type == "text_time":
            width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            pooled = torch.empty(shape.batch, width)
        own = BaseTextStates(states, pooled, states, pooled)
    t = Conditioning(
        torch.empty(shape.batch, shape.tokens, shape.text_width),
        torch.ones(shape.batch, shape.tokens, dtype=torch.bool),
        torch.empty(shape.batch, shape.text_width),
        own,
        size,
    )
    z = torch.empty(cells) if config.in_channels >= 2 * config.out_channels else None
    return torch.empty(cells), torch.zeros(shape.batch, dtype=torch.long), t, z


def saved_bytes(run: Callable[[], Sequence[Tensor]], weights: nn.Module) -> int:
    """Bytes that a real forward pass keeps for its backward pass, the weights' own left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in weights.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = run()  # alive until all is counted: an address is not used twice
    del outputs
    return sum(kept.values())
