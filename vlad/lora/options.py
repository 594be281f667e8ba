"""Options of LoRA: rank, targets, which parts carry adapters, a quantised base."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Literal

from vlad.utils.errors import UserError

Part = Literal["lvlm", "composition", "autoencoder", "layout_unet", "refine_unet"]  # what can carry adapters


# The matrices that are adapted where the options name none: attention, in the LVLM's and in diffusers' spelling.
LVLM_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2")


@dataclass(frozen=True)
class PartRanks:
    """A rank for each part; None: that of all."""

    lvlm: int | None = None
    composition: int | None = None
    autoencoder: int | None = None
    layout_unet: int | None = None
    refine_unet: int | None = None

    def __post_init__(self) -> None:
        for entry in fields(self):
            rank = getattr(self, entry.name)
            if rank is not None and rank < 1:
                raise UserError(f"lora.ranks.{entry.name} must be at least 1, not {rank}.")


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters W + (alpha / rank) B A."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    # Scale by alpha / sqrt(rank) (rsLoRA); learn each row's length apart from its direction (DoRA).
    rslora: bool = False
    dora: bool = False
    # What carries adapters: the UNets as said here, the LVLM and the CCM as `trainable` says (lora or frozen).
    layout_unet: bool = True
    refine_unet: bool = True
    # And the decoder of a PatchAutoencoder, in a stage of its own before the others: for grounds and colours that it
    # has never restored. Latents stay what they are, and an AutoencoderKL stays whole.
    decoder: bool = False
    lvlm_targets: tuple[str, ...] = LVLM_TARGETS
    unet_targets: tuple[str, ...] = UNET_TARGETS
    # Of the CCM and the spelling encoder; empty: every linear layer.
    composition_targets: tuple[str, ...] = ()
    # Ranks of single parts; None: `rank`. alpha / rank stays what it is.
    ranks: PartRanks = field(default_factory=PartRanks)
    # The frozen base's matrices in 4 (NF4) or 8 bits (QLoRA, arXiv 2305.14314), on a GPU; None: as they are.
    base_bits: int | None = None

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise UserError("lora: rank must be at least 1, alpha positive and dropout in [0, 1).")
        if self.base_bits not in (None, 4, 8):
            raise UserError(f"lora.base_bits must be 4, 8 or null for a base as it is, not {self.base_bits}.")

    def of_part(self, part: Part) -> LoraOptions:
        """The same with the rank of one part, and the alpha that leaves alpha / rank as it is."""
        rank = getattr(self.ranks, part) or self.rank
        return replace(self, rank=rank, alpha=self.alpha * rank / self.rank)
