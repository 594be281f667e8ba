"""A pretrained UNet grown by what a finished run gives it: more input channels, t's tokens, t's pooled vector.

At step 0 the grown UNet computes what it computed before, whatever the new inputs hold:

    conv_in            the new channels' weights are zero
    class_embedding    t's pooled vector joins the time embedding through two layers, the last of them zero
    encoder_hid_proj   [W_own | W_t] with W_own = 1: the base's own text tokens pass as they are; t's tokens become zero
                       tokens, whose attention (attention.py) adds zero. Without the base's own text t is all that the
                       UNet reads, and W_t starts like any new layer.

All three are options of diffusers' own `UNet2DConditionModel`: a grown UNet is saved and loaded like any other.
Letters: W width of the UNet's cross-attention, D of t.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from torch import nn

from vlad.utils.errors import UserError

NEW_LAYERS = ("conv_in.", "class_embedding.", "encoder_hid_proj.")  # what has to be trained in full, adapters or not


@torch.no_grad()
def extend_conv_in(unet: UNet2DConditionModel, in_channels: int) -> None:
    """Makes the UNet take `in_channels`, those it had first; the new ones' weights are zero, so nothing changes yet.

    Raises UserError for fewer channels than it takes already.
    """
    old = unet.conv_in
    if in_channels < old.in_channels:
        raise UserError(
            f"The UNet takes {old.in_channels} channels and cannot be made to take {in_channels}: channels are added,"
            " never removed."
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
    """Makes the UNet take t: tokens and a pooled vector of `width` D, and with `keep_base_text` the base's own tokens.

    Raises UserError for a UNet whose text or class inputs are taken by something else.
    """
    stored = unet.config
    check_plain_unet(unet)
    own_width = stored.cross_attention_dim
    like = unet.conv_in.weight
    project = nn.Linear((own_width if keep_base_text else 0) + width, own_width)
    nn.init.zeros_(project.bias)
    if keep_base_text:
        nn.init.zeros_(project.weight)
        project.weight[:, :own_width] = torch.eye(own_width)
    unet.encoder_hid_proj = project.to(like.device, like.dtype)
    unet.register_to_config(encoder_hid_dim=project.in_features, encoder_hid_dim_type="text_proj")

    # One option of diffusers is the width of both the class embedding and SDXL's added one: `denoise` fills t up to it.
    pooled_width = stored.projection_class_embeddings_input_dim or width
    if pooled_width < width:
        raise UserError(
            f"composition.output_width: {width} is wider than the {pooled_width} values that this UNet takes as a"
            f" pooled text; set it to {pooled_width} or less."
        )
    embed = TimestepEmbedding(pooled_width, unet.time_embedding.linear_2.out_features)
    nn.init.zeros_(embed.linear_2.weight)
    nn.init.zeros_(embed.linear_2.bias)
    unet.class_embedding = embed.to(like.device, like.dtype)
    unet.register_to_config(class_embed_type="projection", projection_class_embeddings_input_dim=pooled_width)


def check_plain_unet(unet: UNet2DConditionModel) -> None:
    """Raises UserError for a UNet whose text or class inputs are taken by something that no prompt gives."""
    stored = unet.config
    taken = [
        f"{name}: {stored[name]}"
        for name in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "encoder_hid_dim")
        if stored[name] is not None
    ]
    if stored.addition_embed_type not in (None, "text_time"):
        taken.append(f"addition_embed_type: {stored.addition_embed_type}")
    if stored.time_cond_proj_dim is not None:
        taken.append(f"time_cond_proj_dim: {stored.time_cond_proj_dim}")
    if not isinstance(stored.cross_attention_dim, int):
        taken.append(f"cross_attention_dim: {stored.cross_attention_dim}")
    if taken:
        raise UserError(
            f"stable_diffusion: its UNet is no plain text-to-image UNet ({', '.join(taken)}); name a model of the"
            " Stable Diffusion 1, 2 or XL kind."
        )


def added_parameters(unet: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of the layers that growing has added to, of a UNet with or without adapters."""
    for name, parameter in unet.named_parameters():
        inner = name.removeprefix("base_model.model.")
        if inner.startswith(NEW_LAYERS) and ".lora_" not in inner:
            yield parameter
