"""Extending a pretrained UNet: more input channels, cross-attention to t, t's pooled vector.

At step 0 the extended UNet computes what it computed before, whatever the new inputs hold:

    conv_in            the new channels' weights are zero
    class_embedding    t's pooled vector joins the time embedding through two layers, the last of them zero
    encoder_hid_proj   [W_base | W_t] with W_base = 1: the tokens of the base's text encoders pass unchanged; t's tokens
                       become zero tokens, whose attention (attention.py) adds zero. Without the base's text encoders
                       t is all that the UNet reads, and W_t is initialised like any new layer.

All three are options of diffusers' `UNet2DConditionModel`: an extended UNet is saved and loaded like any other.
Letters: W width of the UNet's cross-attention, D width of t.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from torch import nn

from vlad.utils.errors import UserError

# These have to be trained in full, even where the rest of the UNet carries adapters.
ADDED_LAYERS = ("conv_in.", "class_embedding.", "encoder_hid_proj.")


@torch.no_grad()
def extend_conv_in(unet: UNet2DConditionModel, in_channels: int) -> None:
    """Extends the UNet's input to `in_channels`, the old ones first. The new weights are zero: outputs do not change.

    Raises UserError for fewer channels than it takes already.
    """
    old = unet.conv_in
    if in_channels < old.in_channels:
        raise UserError(
            f"The UNet takes {old.in_channels} input channels and cannot be reduced to {in_channels}: channels are"
            " added, never removed."
        )
    if in_channels == old.in_channels:
        return
    new = nn.Conv2d(in_channels, old.out_channels, old.kernel_size, old.stride, old.padding)  # type: ignore[arg-type]
    new = new.to(old.weight.device, old.weight.dtype)
    nn.init.zeros_(new.weight)
    new.weight[:, : old.in_channels] = old.weight
    assert new.bias is not None and old.bias is not None
    new.bias.copy_(old.bias)
    unet.conv_in = new
    unet.register_to_config(in_channels=in_channels)


@torch.no_grad()
def add_text_conditioning(unet: UNet2DConditionModel, width: int, keep_base_text: bool) -> None:
    """Lets the UNet read t: tokens and a pooled vector of `width` D, beside the base's tokens with `keep_base_text`.

    Raises UserError for a UNet whose text or class inputs are in use for something else.
    """
    config = unet.config
    check_plain_unet(unet)
    base_width = config.cross_attention_dim
    like = unet.conv_in.weight
    project = nn.Linear((base_width if keep_base_text else 0) + width, base_width)
    nn.init.zeros_(project.bias)
    if keep_base_text:
        nn.init.zeros_(project.weight)
        project.weight[:, :base_width] = torch.eye(base_width)
    unet.encoder_hid_proj = project.to(like.device, like.dtype)
    unet.register_to_config(encoder_hid_dim=project.in_features, encoder_hid_dim_type="text_proj")

    # One option of diffusers is the width of both the class embedding and SDXL's pooled text: `denoise` pads t to it.
    pooled_width = config.projection_class_embeddings_input_dim or width
    if pooled_width < width:
        raise UserError(
            f"composition.output_width: {width} is wider than the pooled text that this UNet takes ({pooled_width});"
            f" set it to {pooled_width} or less."
        )
    embed = TimestepEmbedding(pooled_width, unet.time_embedding.linear_2.out_features)
    nn.init.zeros_(embed.linear_2.weight)
    nn.init.zeros_(embed.linear_2.bias)
    unet.class_embedding = embed.to(like.device, like.dtype)
    unet.register_to_config(class_embed_type="projection", projection_class_embeddings_input_dim=pooled_width)


def check_plain_unet(unet: UNet2DConditionModel) -> None:
    """Raises UserError for a UNet whose text or class inputs need something that no prompt gives."""
    config = unet.config
    taken = [
        f"{name}: {config[name]}"
        for name in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "encoder_hid_dim")
        if config[name] is not None
    ]
    if config.addition_embed_type not in (None, "text_time"):
        taken.append(f"addition_embed_type: {config.addition_embed_type}")
    if config.time_cond_proj_dim is not None:
        taken.append(f"time_cond_proj_dim: {config.time_cond_proj_dim}")
    if not isinstance(config.cross_attention_dim, int):
        taken.append(f"cross_attention_dim: {config.cross_attention_dim}")
    if taken:
        raise UserError(
            f"stable_diffusion: the model's UNet is no plain text-to-image UNet ({', '.join(taken)}); name a model of"
            " the Stable Diffusion 1, 2 or XL kind."
        )


def added_parameters(unet: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of ADDED_LAYERS, of a UNet with or without adapters."""
    for name, parameter in unet.named_parameters():
        inner = name.removeprefix("base_model.model.")
        if inner.startswith(ADDED_LAYERS) and ".lora_" not in inner:
            yield parameter
