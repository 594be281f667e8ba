"""LoRA options: rank, alpha, targets, which parts carry adapters, a quantised base."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Literal

from vlad.utils.errors import UserError

Part = Literal["lvlm", "composition", "autoencoder", "layout_unet", "refine_unet"]  # what can carry adapters

# The default targets: attention and residual layers, by the names of transformers and of diffusers.
LVLM_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2")


@dataclass(frozen=True)
class PartRanks:
    """A rank for each part; None: `lora.rank`."""

    # Of the LVLM.
    lvlm: int | None = None
    # Of the CCM and the spelling encoder.
    composition: int | None = None
    # Of the decoder (`lora.decoder`).
    autoencoder: int | None = None
    # Of the layout UNet.
    layout_unet: int | None = None
    # Of the refine UNet.
    refine_unet: int | None = None

    def __post_init__(self) -> None:
        for entry in fields(self):
            rank = getattr(self, entry.name)
            if rank is not None and rank < 1:
                raise UserError(f"lora.ranks.{entry.name} must be at least 1, not {rank}.")


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters W + (alpha / rank) B A."""

    # Columns of B and rows of A.
    rank: int = 8
    # Scale of the update: alpha / rank.
    alpha: float = 16.0
    # Dropout of the input of A.
    dropout: float = 0.0
    # rsLoRA: scale by alpha / sqrt(rank) instead.
    rslora: bool = False
    # DoRA: learn each row's length apart from its direction.
    dora: bool = False
    # The layout UNet carries adapters. For the LVLM and the CCM, `trainable` decides (lora or frozen).
    layout_unet: bool = True
    # The refine UNet carries adapters.
    refine_unet: bool = True
    # Adapters on the decoder of a PatchAutoencoder, trained in a stage before the others: for backgrounds and colours
    # that it has not learned. The latents do not change; an AutoencoderKL is never adapted.
    decoder: bool = False
    # The layers of the LVLM that carry adapters, by the ends of their names.
    lvlm_targets: tuple[str, ...] = LVLM_TARGETS
    # The layers of the UNets that do.
    unet_targets: tuple[str, ...] = UNET_TARGETS
    # The layers of the CCM and the spelling encoder that do; empty: every linear layer.
    composition_targets: tuple[str, ...] = ()
    # Ranks of single parts; alpha / rank stays the same (with rsLoRA alpha does).
    ranks: PartRanks = field(default_factory=PartRanks)
    # Quantise the frozen base to 4 (NF4) or 8 bits (QLoRA, arXiv 2305.14314), on a GPU; None: do not quantise.
    base_bits: int | None = None

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise UserError("lora: rank must be at least 1, alpha positive and dropout in [0, 1).")
        if self.base_bits not in (None, 4, 8):
            raise UserError(f"lora.base_bits must be 4, 8 or null (not quantised), not {self.base_bits}.")

    def of_part(self, part: Part) -> LoraOptions:
        """The options with one part's rank, and the alpha that keeps alpha / rank; rsLoRA's alpha fits any rank."""
        rank = getattr(self.ranks, part) or self.rank
        return replace(self, rank=rank, alpha=self.alpha if self.rslora else self.alpha * rank / self.rank)
