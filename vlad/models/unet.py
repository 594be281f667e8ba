"""The layout UNet and the refine UNet (diffusers' UNet2DConditionModel), and `denoise`, the one contract to call them.

    layout UNet (TLG, Eq. 6)     z_t                       cross-attention to t  ->  prediction for z
    refine UNet (VFE, Eq. 5, 7)  x_t (+) z, concatenated   cross-attention to t  ->  prediction for x_0

Input channels, in this order: x_t, z, position features (Fourier features of x and y: on 8 x 8 cells a small UNet
does not know where it is without them), inpainting channels (inpainting_inputs.py). SDXL's UNet is conditioned on the
image size, too. Letters: B batch, C latent channels, P position channels, h w cells, K conditioning tokens, M tokens of
the base model's text encoders.
"""

from __future__ import annotations

import math

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from vlad.models.options import UNetOptions
from vlad.types import Conditioning


def build_unet(
    options: UNetOptions, latent_channels: int, extra_channels: int, cross_attention_width: int, cells: int
) -> UNet2DConditionModel:
    """A new UNet for `latent_channels` in and out, with `extra_channels` (z's) concatenated to its input."""
    plain = options.attention_from_level
    attended = len(options.block_channels) - plain
    up_block = "CrossAttnUpBlock2D" if options.up_attention else "UpBlock2D"
    return UNet2DConditionModel(
        sample_size=cells,
        in_channels=latent_channels + extra_channels + 4 * options.position_frequencies,
        out_channels=latent_channels,
        block_out_channels=options.block_channels,
        layers_per_block=options.layers_per_block,
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",) * attended,
        up_block_types=(up_block,) * attended + ("UpBlock2D",) * plain,
        # diffusers' name is misleading: this is the number of heads (huggingface/diffusers#2011).
        attention_head_dim=options.heads,
        cross_attention_dim=cross_attention_width,
        class_embed_type="projection" if options.pooled else None,
        projection_class_embeddings_input_dim=cross_attention_width if options.pooled else None,
    )


def denoise(
    unet: UNet2DConditionModel,
    x_t: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    z: Tensor | None = None,
    edit: Tensor | None = None,
) -> Tensor:
    """One call of a UNet: its prediction (B C h w) at x_t (B C h w), timesteps (B), given t and z (B C h w or None).

    `edit`: the inpainting channels of `inpainting_inputs` (B 1+C h w), for a UNet that has them, and only for one.
    """
    inputs = [x_t] if z is None else [x_t, z]  # Eq. 7: x_t (+) z
    edits = [] if edit is None else [edit]
    position_channels = unet.config.in_channels - sum(part.shape[1] for part in (*inputs, *edits))
    if position_channels:
        inputs.append(position_features(position_channels, x_t))
    inputs += edits
    pooled = None
    if unet.config.class_embed_type == "projection":
        missing = unet.config.projection_class_embeddings_input_dim - conditioning.pooled.shape[-1]
        pooled = F.pad(conditioning.pooled, (0, missing))
    tokens, mask, base_tokens = _cross_attention_tokens(conditioning)  # B M+K W+D or B K D
    return unet(
        torch.cat(inputs, dim=1),
        timesteps,
        encoder_hidden_states=tokens,
        encoder_attention_mask=mask,
        class_labels=pooled,
        added_cond_kwargs=_sdxl_conditioning(unet, conditioning),
        cross_attention_kwargs={"base_tokens": base_tokens} if base_tokens else None,
        return_dict=False,
    )[0]


def has_text_projection(unet: UNet2DConditionModel) -> bool:
    """Whether the UNet is a pretrained one that was extended to read t (unet_surgery.py)."""
    return unet.config.encoder_hid_dim_type == "text_proj"


def _cross_attention_tokens(conditioning: Conditioning) -> tuple[Tensor, Tensor, int]:
    """Tokens and mask for cross-attention, and how many of the tokens are the base model's: those first, then t's.

    Each kind has its own columns, zero in the other: one matrix, `encoder_hid_proj`, holds a projection of each.
    """
    base = conditioning.base_text
    if base is None:
        return conditioning.tokens, conditioning.mask, 0
    of_base = F.pad(base.tokens, (0, conditioning.tokens.shape[-1]))  # B M W+D
    of_t = F.pad(conditioning.tokens, (base.tokens.shape[-1], 0))  # B K W+D
    mask = F.pad(conditioning.mask, (base.tokens.shape[1], 0), value=True)
    return torch.cat([of_base, of_t.to(of_base.dtype)], dim=1), mask, base.tokens.shape[1]


def _sdxl_conditioning(unet: UNet2DConditionModel, conditioning: Conditioning) -> dict[str, Tensor] | None:
    """SDXL's pooled text and size conditioning (arXiv 2307.01952, section 2.2); None for another UNet.

    The six sizes are the original height and width, the crop's top and left, and the target height and width: our
    images are uncropped, and as large as the target. Without the base's text encoders the pooled text is zeros, which
    SDXL was trained to take for no prompt.
    """
    if unet.config.addition_embed_type != "text_time":
        return None
    assert conditioning.size is not None, "this UNet is conditioned on the image size"
    batch, base = len(conditioning.tokens), conditioning.base_text
    sizes = torch.tensor([*conditioning.size, 0.0, 0.0, *conditioning.size], device=conditioning.tokens.device)
    text = None if base is None else base.pooled
    if text is None:
        width = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        text = conditioning.tokens.new_zeros(batch, width)
    return {"text_embeds": text, "time_ids": sizes.expand(batch, -1)}


def position_features(channels: int, like: Tensor) -> Tensor:
    """Fourier features: sin and cos of pi k x and pi k y, k = 1 .. channels / 4, at the cells' centres: B P h w."""
    frequencies = math.pi * torch.arange(1, channels // 4 + 1, device=like.device)

    def waves(count: int) -> Tensor:
        angles = (torch.arange(count, device=like.device) + 0.5) / count * frequencies[:, None]
        return torch.cat([angles.sin(), angles.cos()])  # P/2 count

    height, width = like.shape[-2:]
    y = waves(height)[:, :, None].expand(-1, -1, width)
    x = waves(width)[:, None, :].expand(-1, height, -1)
    return torch.cat([y, x]).to(like.dtype).expand(len(like), -1, -1, -1)
