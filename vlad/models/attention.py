"""Attention backends of the UNets (xformers, SDPA, flash), and decoupled cross-attention to a base's text and to t.

auto       xformers if its kernel runs on this device, else SDPA
xformers   memory-efficient attention
sdpa       torch's scaled_dot_product_attention, which chooses its kernel
plain      matrix products and a softmax: the reference that the others are compared with
flash      torch's flash kernel for self-attention; cross-attention has a mask, which no flash kernel takes, and uses
           SDPA
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlad.models.unet import has_text_projection
from vlad.utils.errors import UserError, install_command

Backend = Literal["auto", "xformers", "sdpa", "flash", "plain"]


class FlashAttnProcessor(AttnProcessor2_0):
    """SDPA restricted to the flash kernel wherever there is no mask: it fails rather than falling back."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        given = (attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        if attention_mask is not None:
            return super().__call__(*given)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return super().__call__(*given)


class XformersAttnProcessor:
    """xformers' memory-efficient attention.

    Unlike diffusers' processor it passes masks as the kernels need them: in the queries' precision (under autocast the
    UNet makes them in float32), each row at a multiple of 8 values.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        from xformers import ops  # an optional extra, and slow to import

        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        given = (attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source))
        q, k, v = (x.unflatten(-1, (attn.heads, -1)) for x in given)  # B L heads W/heads
        bias = None if attention_mask is None else aligned_bias(attention_mask, q)
        attended = ops.memory_efficient_attention(q, k, v, attn_bias=bias, scale=attn.scale)
        return attn.to_out[1](attn.to_out[0](attended.flatten(2)))


def aligned_bias(mask: Tensor, q: Tensor) -> Tensor:
    """An additive mask B 1 K as B heads L K for q (B L heads D), each row aligned to 8 values."""
    keys = mask.shape[-1]
    padded = F.pad(mask.to(q.dtype), (0, -keys % 8))[..., :keys]
    return padded[:, None].expand(-1, q.shape[2], q.shape[1], -1)


class DecoupledCrossAttnProcessor:
    """Self-attention by `inner`; decoupled cross-attention to the tokens of the base's text encoders and to t's:

        A(q, K_base, V_base) + A(q, K_t, V_t)

    t takes nothing from the softmax over the base's tokens, and zero tokens add zero (V has no bias): the UNet's output
    does not change until t is trained. IP-Adapter (arXiv 2308.06721, Eq. 5) adds images in this way; here both share
    W_k and W_v.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        base_tokens: int = 0,
    ) -> Tensor:
        """`base_tokens`: how many of the B K W encoder states are the base model's; they come first, unmasked."""
        if encoder_hidden_states is None or not base_tokens:
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        q, k, v = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))  # B heads L W/heads
        bias = None if attention_mask is None else attention_mask[:, None, :, base_tokens:]  # B 1 1 K
        of_base = F.scaled_dot_product_attention(q, k[:, :, :base_tokens], v[:, :, :base_tokens])
        of_t = F.scaled_dot_product_attention(q, k[:, :, base_tokens:], v[:, :, base_tokens:], attn_mask=bias)
        return attn.to_out[1](attn.to_out[0]((of_base + of_t).transpose(1, 2).flatten(2)))


def set_decoupled_attention(unets: Sequence[UNet2DConditionModel | None]) -> None:
    """Gives extended UNets decoupled cross-attention; attention processors are not saved with a model."""
    for unet in unets:
        if unet is not None and has_text_projection(unet):
            processors = unet.attn_processors.values()
            if not all(isinstance(processor, DecoupledCrossAttnProcessor) for processor in processors):
                unet.set_attn_processor(DecoupledCrossAttnProcessor(next(iter(processors))))


DEFAULT_HEAD_WIDTHS = (32,)  # to try a kernel with, where there is no UNet to ask


def try_xformers(
    device: torch.device, dtype: torch.dtype = torch.bfloat16, widths: Sequence[int] = DEFAULT_HEAD_WIDTHS
) -> str | None:
    """Runs xformers' kernel on the device, forward and backward; returns None, or the reason why it failed.

    `widths`: of the attention heads. Tried without a mask, and with one of an odd number of tokens.
    """
    try:
        from xformers import ops  # an optional extra, and slow to import
    except ImportError:
        return f"xformers is not installed ({install_command('xformers')})"
    if device.type != "cuda":
        return f"xformers has no kernels for {device.type}"

    def attend(q: Tensor) -> Tensor:
        bias = aligned_bias(q.new_zeros(len(q), 1, 5), q)
        return ops.memory_efficient_attention(q, q, q) + ops.memory_efficient_attention(q, q[:, :5], q[:, :5], bias)

    # B L heads D
    return _failure([(1, 8, 2, width) for width in widths], device, dtype, attend)


def try_flash(device: torch.device, dtype: torch.dtype, widths: Sequence[int] = DEFAULT_HEAD_WIDTHS) -> str | None:
    """Runs torch's flash kernel on the device, forward and backward; returns None, or the reason why it failed."""

    def attend(q: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, q, q)

    # B heads L D
    return _failure([(1, 2, 8, width) for width in widths], device, dtype, attend)


def _failure(
    shapes: Sequence[tuple[int, ...]], device: torch.device, dtype: torch.dtype, attend: Callable[[Tensor], Tensor]
) -> str | None:
    for shape in shapes:
        q = torch.randn(shape, device=device, dtype=dtype, requires_grad=True, generator=torch.Generator(device))
        try:
            with torch.enable_grad():
                attend(q).sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        except (NotImplementedError, RuntimeError, ValueError) as error:
            # `auto` prints the reason beside the backend it falls back to; for the other backends it is an error.
            reason = str(error).strip() or type(error).__name__
            where = f"{str(dtype).removeprefix('torch.')} with heads of {shape[-1]}"
            return f"its kernel does not run here in {where}: {reason.splitlines()[0]}"
    return None


def _head_widths(unets: Sequence[UNet2DConditionModel]) -> list[int]:
    """The widths of the UNets' attention heads."""
    layers = [module for unet in unets for module in unet.modules() if isinstance(module, Attention)]
    return sorted({layer.inner_dim // layer.heads for layer in layers}) or list(DEFAULT_HEAD_WIDTHS)


def set_attention(
    unets: list[UNet2DConditionModel], backend: str, device: torch.device, dtype: torch.dtype = torch.float32
) -> str:
    """Sets the attention backend of the UNets, which compute in `dtype`; returns a line with the choice and its reason.

    Raises UserError for `xformers` and `flash` where they cannot run.
    """
    reason = None
    if backend in ("auto", "xformers"):
        reason = try_xformers(device, dtype, _head_widths(unets))
    elif backend == "flash":
        reason = try_flash(device, dtype, _head_widths(unets))
    if backend in ("xformers", "flash") and reason is not None:
        raise UserError(f"trainer.attention: {backend} cannot run: {reason}; use auto or sdpa.")
    if backend == "auto":
        backend = "xformers" if reason is None else "sdpa"
    processor = {"xformers": XformersAttnProcessor, "flash": FlashAttnProcessor, "sdpa": AttnProcessor2_0}.get(
        backend, AttnProcessor
    )
    for unet in unets:
        unet.set_attn_processor(processor())
    set_decoupled_attention(unets)
    if backend == "plain":
        return "attention: plain matrix products"
    if backend == "sdpa":
        return "attention: torch SDPA" + (f" ({reason})" if reason else "")
    name = {"xformers": "xformers", "flash": "torch's flash kernel where there is no mask"}[backend]
    return f"attention: {name} (its kernel ran on this device)"
