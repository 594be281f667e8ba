"""Stand-ins for Stable Diffusion: its classes and its shapes in small, random weights, saved as the real ones are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from vlad.text.own import tiny_text_encoder

Kind = Literal["sd15", "sd21", "sdxl"]
WIDTH = 32  # of a text encoder
POOLED, SIZE_WIDTH = 24, 8  # SDXL's pooled text, and the width of each of its six size numbers
SCHEDULE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class StandInOptions:
    """Sizes of a stand-in; `autoencoder` are options of AutoencoderKL beside or in place of ours."""

    block_channels: tuple[int, ...] = (32, 64)
    levels: int = 4  # of the autoencoder: a latent cell is 2^(levels - 1) pixels
    latent_channels: int = 4
    autoencoder: Mapping[str, Any] | None = None


def save_stand_in(kind: Kind, folder: Path, options: StandInOptions | None = None, seed: int = 0) -> None:
    """Writes a stand-in for Stable Diffusion 1.5, 2.1 or XL to a folder in diffusers' format, in safetensors."""
    options = options or StandInOptions()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = _xl(options) if kind == "sdxl" else _plain(kind, options)
    pipeline.save_pretrained(folder, safe_serialization=True)


def _plain(kind: Kind, options: StandInOptions) -> StableDiffusionPipeline:
    """SD 1.5 predicts epsilon, 2.1 v; 2.1 has linear projections around its attention and heads of one width."""
    encoder, tokenizer = tiny_text_encoder(WIDTH, 2, None)
    v = kind == "sd21"
    unet = _unet(
        options,
        cross_attention_dim=WIDTH,
        attention_head_dim=[2 * (n + 1) for n in range(len(options.block_channels))] if v else 4,
        use_linear_projection=v,
        down_block_types=("CrossAttnDownBlock2D",) * (len(options.block_channels) - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(options.block_channels) - 1),
    )
    common: dict[str, Any] = {**SCHEDULE, "steps_offset": 1, "set_alpha_to_one": False}
    scheduler = (
        DDIMScheduler(**common, prediction_type="v_prediction", clip_sample=False)
        if v
        else PNDMScheduler(**common, skip_prk_steps=True)
    )
    return StableDiffusionPipeline(
        vae=_autoencoder(options, 0.18215),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _xl(options: StandInOptions) -> StableDiffusionXLPipeline:
    """Two text encoders side by side, the second one's pooled output and six size numbers beside the time."""
    first, tokenizer = tiny_text_encoder(WIDTH, 2, None)
    second, tokenizer_2 = tiny_text_encoder(WIDTH, 3, POOLED)
    levels = len(options.block_channels)
    unet = _unet(
        options,
        cross_attention_dim=2 * WIDTH,
        attention_head_dim=[2 * (n + 1) for n in range(levels)],
        use_linear_projection=True,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (levels - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (levels - 1) + ("UpBlock2D",),
        transformer_layers_per_block=list(range(1, levels + 1)),
        addition_embed_type="text_time",
        addition_time_embed_dim=SIZE_WIDTH,
        projection_class_embeddings_input_dim=POOLED + 6 * SIZE_WIDTH,
    )
    return StableDiffusionXLPipeline(
        vae=_autoencoder(options, 0.13025),
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**SCHEDULE, steps_offset=1, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def _unet(options: StandInOptions, **of_kind: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=options.latent_channels,
        out_channels=options.latent_channels,
        block_out_channels=options.block_channels,
        layers_per_block=1,
        norm_num_groups=8,
        **of_kind,
    )


def _autoencoder(options: StandInOptions, scaling_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        **{
            "block_out_channels": (16,) * options.levels,
            "down_block_types": ("DownEncoderBlock2D",) * options.levels,
            "up_block_types": ("UpDecoderBlock2D",) * options.levels,
            "latent_channels": options.latent_channels,
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "scaling_factor": scaling_factor,
            **(options.autoencoder or {}),
        }
    )
