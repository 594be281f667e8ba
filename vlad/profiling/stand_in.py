"""Stand-ins for Stable Diffusion: models of its classes with random weights, small or of the real sizes.

Saved in diffusers' format like the real ones: to try a config before the weights are downloaded, to compare planned
with measured memory (`benchmark plan`), and for tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn

Kind = Literal["sd15", "sd21", "sdxl"]
WIDTH = 32  # of a text encoder
POOLED, SIZE_WIDTH = 24, 8  # widths of SDXL's pooled text and of each of its six size embeddings
SCHEDULE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class StandInOptions:
    """Sizes of a stand-in.

    `text`: width and layers of each text encoder; `pooled`: the pooled width of the second. `autoencoder`: further
    options of AutoencoderKL, which take precedence over the ones here.
    """

    block_channels: tuple[int, ...] = (32, 64)
    layers_per_block: int = 1
    head_dims: tuple[int, ...] | None = None  # diffusers' attention_head_dim; None: small heads
    transformer_layers: tuple[int, ...] | None = None  # of each level of SDXL; None: 1, 2, ...
    size_width: int = SIZE_WIDTH
    text: tuple[tuple[int, int], ...] = ((WIDTH, 2), (WIDTH, 3))
    pooled: int = POOLED
    autoencoder_channels: tuple[int, ...] | None = None  # None: 16 on each level
    levels: int = 4  # of the autoencoder: a latent cell is 2^(levels - 1) pixels
    latent_channels: int = 4
    autoencoder: Mapping[str, Any] | None = None


_AS_SD = {"layers_per_block": 2, "autoencoder_channels": (128, 256, 512, 512)}
# The sizes of the published models, except their vocabularies.
REAL: dict[Kind, StandInOptions] = {
    "sd15": StandInOptions((320, 640, 1280, 1280), head_dims=(8,), text=((768, 12),), **_AS_SD),  # type: ignore[arg-type]
    "sd21": StandInOptions(
        (320, 640, 1280, 1280),
        head_dims=(5, 10, 20, 20),
        text=((1024, 23),),
        **_AS_SD,  # type: ignore[arg-type]
    ),
    "sdxl": StandInOptions(
        (320, 640, 1280),
        head_dims=(5, 10, 20),
        transformer_layers=(1, 2, 10),
        size_width=256,
        text=((768, 12), (1280, 32)),
        pooled=1280,
        **_AS_SD,  # type: ignore[arg-type]
    ),
}


def save_stand_in(kind: Kind, folder: Path, options: StandInOptions | None = None, seed: int = 0) -> None:
    """Writes a stand-in for Stable Diffusion 1.5, 2.1 or XL to a folder in diffusers' format, in safetensors."""
    options = options or StandInOptions()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = _xl(options) if kind == "sdxl" else _plain(kind, options)
    pipeline.save_pretrained(folder, safe_serialization=True)


def _plain(kind: Kind, options: StandInOptions) -> StableDiffusionPipeline:
    """SD 1.5 predicts epsilon, 2.1 predicts v; 2.1 has linear projections around attention and heads of one width."""
    encoder, tokenizer = _text_encoder(*options.text[0], None)
    v = kind == "sd21"
    unet = _unet(
        options,
        cross_attention_dim=options.text[0][0],
        attention_head_dim=_head_dims(options) if v else (options.head_dims or (4,))[0],
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
    """Two text encoders side by side; the pooled output of the second and six size values join the time embedding."""
    first, tokenizer = _text_encoder(*options.text[0], None)
    second, tokenizer_2 = _text_encoder(*options.text[1], options.pooled)
    levels = len(options.block_channels)
    unet = _unet(
        options,
        cross_attention_dim=options.text[0][0] + options.text[1][0],
        attention_head_dim=_head_dims(options),
        use_linear_projection=True,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (levels - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (levels - 1) + ("UpBlock2D",),
        transformer_layers_per_block=list(options.transformer_layers or range(1, levels + 1)),
        addition_embed_type="text_time",
        addition_time_embed_dim=options.size_width,
        projection_class_embeddings_input_dim=options.pooled + 6 * options.size_width,
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


def _text_encoder(width: int, layers: int, projection: int | None) -> tuple[nn.Module, Any]:
    """A CLIP text encoder and a tokenizer of single bytes; with `projection`, like SDXL's second encoder."""
    letters = sorted(ByteLevel.alphabet())
    symbols = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(4, width // 64),
        projection_dim=projection or width,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
    )
    encoder_class = transformers.CLIPTextModel if projection is None else transformers.CLIPTextModelWithProjection
    return encoder_class(config), tokenizer


def _head_dims(options: StandInOptions) -> list[int]:
    return list(options.head_dims or (2 * (n + 1) for n in range(len(options.block_channels))))


def _unet(options: StandInOptions, **of_kind: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=options.latent_channels,
        out_channels=options.latent_channels,
        block_out_channels=options.block_channels,
        layers_per_block=options.layers_per_block,
        norm_num_groups=8,
        **of_kind,
    )


def _autoencoder(options: StandInOptions, scaling_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        **{
            "block_out_channels": options.autoencoder_channels or (16,) * options.levels,
            "down_block_types": ("DownEncoderBlock2D",) * options.levels,
            "up_block_types": ("UpDecoderBlock2D",) * options.levels,
            "latent_channels": options.latent_channels,
            "layers_per_block": options.layers_per_block,
            "norm_num_groups": 8,
            "scaling_factor": scaling_factor,
            **(options.autoencoder or {}),
        }
    )
