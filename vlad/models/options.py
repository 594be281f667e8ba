"""Model options: UNets, autoencoder, CCM, LVLM, the Stable Diffusion that a run starts from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from vlad.utils.errors import UserError

# Far above what anybody trains: a slip of the keyboard, or a stranger's config, must not take all memory.
MOST = {
    "layers": 1024,
    "width": 65_536,
    "queries": 65_536,
    "slots": 65_536,
    "max_characters": 1024,
    "max_strings": 1024,
}


def _refuse_more_than(section: str, most: int, **values: int) -> None:
    for name, value in values.items():
        if value > most:
            raise UserError(f"{section}.{name} is {value}; {most} is the most.")


@dataclass(frozen=True)
class UNetOptions:
    """A new UNet, with attention on its coarser levels, or on all."""

    # Channels of each level, from the finest.
    block_channels: tuple[int, ...] = (96, 128)
    # Residual blocks on every level.
    layers_per_block: int = 1
    # Attention heads.
    heads: int = 4
    # The finest level with attention (self-attention, and cross-attention to t), 0 the finest of all. Attention among
    # 32 x 32 cells takes a third of a training step of configs/poster.yaml.
    attention_from_level: int = 0
    # Cross-attention in the up blocks, too. Without it a training step of the tiny UNets takes 0.6 of the time.
    up_attention: bool = True
    # Position features (Fourier features of x and y) beside the latents, 4 channels a frequency; 0 for none.
    position_frequencies: int = 6
    # Add the pooled conditioning to the time embedding.
    pooled: bool = True

    def __post_init__(self) -> None:
        _refuse_more_than("unet", MOST["layers"], layers_per_block=self.layers_per_block)
        _refuse_more_than("unet", MOST["width"], block_channels=max(self.block_channels, default=0))
        if not self.block_channels or any(channels < 1 or channels % 32 for channels in self.block_channels):
            raise UserError(
                f"unet.block_channels must be positive multiples of 32 (group norm), not {list(self.block_channels)}."
            )
        if not 0 <= self.attention_from_level < len(self.block_channels):
            raise UserError(
                f"unet.attention_from_level must be one of the {len(self.block_channels)} levels of"
                f" unet.block_channels, from 0, not {self.attention_from_level}."
            )


@dataclass(frozen=True)
class AutoencoderOptions:
    """A pretrained AutoencoderKL, or a PatchAutoencoder that the run trains."""

    # Folder or hub id of an AutoencoderKL in diffusers' format; None: train a PatchAutoencoder of the sizes below.
    path: str | None = None
    # Branch, tag or commit of a hub id; None: its newest.
    revision: str | None = None
    # Pixels per latent cell, along one side.
    patch_pixels: int = 8
    # Principal components kept of a patch.
    latent_channels: int = 24
    # Channels of the decoder, of its first level.
    decoder_width: int = 128
    # Residual blocks of the decoder, on each level.
    decoder_layers: int = 2
    # Levels of the decoder: from one to the next the resolution doubles and the width halves. 1 is the fastest; with
    # more, no edges of patches are to be seen.
    decoder_levels: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.latent_channels <= 3 * self.patch_pixels**2 or self.patch_pixels < 1:
            raise UserError(
                f"autoencoder: latent_channels ({self.latent_channels}) must be from 1 to the values of a patch,"
                f" 3 x patch_pixels^2, and patch_pixels ({self.patch_pixels}) at least 1."
            )
        _refuse_more_than("autoencoder", MOST["layers"], decoder_layers=self.decoder_layers)
        _refuse_more_than(
            "autoencoder", MOST["width"], decoder_width=self.decoder_width, patch_pixels=self.patch_pixels
        )
        if self.decoder_levels < 1 or self.patch_pixels % 2 ** (self.decoder_levels - 1):
            raise UserError(
                f"autoencoder: decoder_levels ({self.decoder_levels}) must be at least 1, and patch_pixels"
                f" ({self.patch_pixels}) a multiple of 2^(decoder_levels - 1)."
            )
        least_width = 8 * 2 ** (self.decoder_levels - 1)
        if self.decoder_width < 1 or self.decoder_width % least_width or self.decoder_layers < 0:
            raise UserError(
                f"autoencoder: decoder_width must be a positive multiple of {least_width} (group norm, on each of the"
                " decoder_levels), decoder_layers not negative."
            )


@dataclass(frozen=True)
class CompositionOptions:
    """The Contextual Composition Module. `kind: none` is the paper's ablation: one projection of the LVLM's tokens."""

    # `transformer`: self-attention over t_g, {t_i} and spelling tokens; `q-former`: learned queries that read them.
    kind: Literal["transformer", "q-former", "none"] = "transformer"
    # {t_i}: the states of the prompt's object phrases, or of `slots` learned slot queries.
    locals: Literal["phrases", "slots"] = "phrases"
    # Slot queries, for `locals: slots`.
    slots: int = 4
    # Learned queries, for `kind: q-former`.
    queries: int = 16
    # Width of the CCM.
    width: int = 128
    # Transformer layers of the CCM.
    layers: int = 2
    # Attention heads of the CCM.
    heads: int = 4
    # Width of the tokens that the UNets' cross-attention reads.
    output_width: int = 128
    # Spelling tokens: one per character of every quoted string.
    spelling: bool = True
    # The longest string that the spelling tokens take.
    max_characters: int = 8
    # The most strings of a layout that the spelling tokens tell apart.
    max_strings: int = 3

    def __post_init__(self) -> None:
        if min(self.width, self.output_width, self.layers, self.max_characters, self.max_strings) < 1:
            raise UserError(
                "composition: width, output_width, layers, max_characters and max_strings must be at least 1."
            )
        for name, most in MOST.items():
            _refuse_more_than("composition", most, **{name: getattr(self, name)})
        _refuse_more_than("composition", MOST["width"], output_width=self.output_width)
        if self.heads < 1 or self.width % self.heads:
            raise UserError(f"composition: width ({self.width}) must be a multiple of heads ({self.heads}).")
        if min(self.slots, self.queries) < 1:
            raise UserError("composition: slots and queries must be at least 1.")
        if self.kind == "none" and self.locals == "slots":
            raise UserError(
                "composition.locals: slots does nothing with kind: none, which passes the LVLM's tokens on; choose"
                " another kind, or locals: phrases."
            )


@dataclass(frozen=True)
class LVLMOptions:
    """The LVLM, and which of its states are used."""

    # Folder or hub id; None: a tiny Qwen2.5-VL of the sizes below, with random weights and a byte-level tokenizer.
    path: str | None = None
    # Branch, tag or commit of a hub id; None: its newest.
    revision: str | None = None
    # Runs code from the hub; `revision` must be a full commit id, so that the code cannot change.
    trust_remote_code: bool = False
    # A frozen CLIP, SigLIP or DINOv2 for v, if the LVLM has no vision tower or another one is wanted.
    vision_path: str | None = None
    # Its branch, tag or commit.
    vision_revision: str | None = None
    # Sizes of the tiny Qwen2.5-VL and of its vision tower, where `path` is None.
    hidden_size: int = 128
    # Layers of the tiny Qwen2.5-VL.
    layers: int = 2
    # Attention heads of the tiny Qwen2.5-VL.
    heads: int = 4
    # Width of its vision tower.
    vision_hidden_size: int = 64
    # Layers of its vision tower.
    vision_layers: int = 2
    # The side of its vision tower's patches.
    vision_patch_pixels: int = 16
    # Side in pixels to which images are scaled for a vision tower that takes any size (Qwen2-VL, Pixtral, DINOv2).
    vision_pixels: int = 64
    # Longer prompts are cut: words outside quotation marks go first, from the right.
    max_tokens: int = 160
    # Put the prompt between the tokenizer's special tokens, or into its chat template (whose tokens give no states).
    template: Literal["plain", "chat"] = "plain"
    # The hidden states to use: `last`, `layer:N` (from 1, or from the end: -1 is the last), or `normalised-average`:
    # the mean over all layers, each layer-normalised (Wang et al., CVPR 2025).
    states: str = "last"
    # t_g: the mean of all token states, or the last one (of a pretrained causal LVLM the one that attends to all).
    pooling: Literal["mean", "last"] = "mean"

    def __post_init__(self) -> None:
        if min(self.layers, self.vision_layers, self.vision_patch_pixels) < 1 or self.max_tokens < 8:
            raise UserError(
                "lvlm: layers, vision_layers and vision_patch_pixels must be at least 1, and max_tokens at least 8."
            )
        _refuse_more_than("lvlm", MOST["layers"], layers=self.layers, vision_layers=self.vision_layers)
        widths = {"hidden_size": self.hidden_size, "vision_hidden_size": self.vision_hidden_size}
        _refuse_more_than("lvlm", MOST["width"], **widths)
        if self.vision_hidden_size < 8 or self.vision_hidden_size % 8:
            raise UserError(f"lvlm: vision_hidden_size must be a multiple of 8, not {self.vision_hidden_size}.")
        if self.path is None and self.vision_pixels < 2 * self.vision_patch_pixels:
            raise UserError(
                f"lvlm: vision_pixels ({self.vision_pixels}) must be at least two patches of vision_patch_pixels"
                f" ({self.vision_patch_pixels})."
            )
        if self.heads < 1 or self.hidden_size % (2 * self.heads) or self.hidden_size // self.heads < 8:
            raise UserError(
                f"lvlm: hidden_size ({self.hidden_size}) over heads ({self.heads}) must be an even width of at least 8."
            )
        if self.trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise UserError(
                "lvlm.trust_remote_code runs code from the hub and needs lvlm.revision, the 40 digits of the commit"
                " that you have read."
            )
        if not re.fullmatch(r"last|normalised-average|layer:-?[1-9][0-9]*", self.states):
            raise UserError(
                f"lvlm.states is last, layer:N (such as layer:-2) or normalised-average, not {self.states!r}."
            )


OPTION = "stable_diffusion.path"  # how error messages begin


@dataclass(frozen=True)
class StableDiffusionOptions:
    """The Stable Diffusion model that both UNets start from."""

    # A folder or hub id in diffusers' format, or one .safetensors file.
    path: str = ""
    # Branch, tag or commit of a hub id; None: its newest.
    revision: str | None = None
    # Which weights, if the folder has several variants, such as fp16; None: those without a variant's name.
    variant: str | None = None
    # For a single file: a folder or hub id in diffusers' format of the same kind of model, for its configs and
    # tokenizers. Its weights are not read.
    config: str | None = None
    # Keep the tokens of the model's text encoders beside the CCM's: at step 0 the images are those of the model.
    own_text: bool = True

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError(
                f"{OPTION}: name a Stable Diffusion model, a folder or hub id in diffusers' format or a .safetensors"
                " file."
            )


@dataclass(frozen=True)
class BaseTextOptions:
    """Which states of the base model's text encoders are used.

    Stable Diffusion 1 and 2: the `last`, after the final norm; XL: the `penultimate`, without a norm.
    `empty_as_zeros`: no prompt is zeros (SDXL was trained so) instead of the empty string.
    """

    states: Literal["last", "penultimate"] = "last"
    empty_as_zeros: bool = False
