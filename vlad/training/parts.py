"""Parts: the modules of a run, as they are built, trained stage by stage and published."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import AutoencoderKL, UNet2DConditionModel

from vlad.losses.alignment_heads import AlignmentHeads
from vlad.models.autoencoder import PatchAutoencoder
from vlad.models.composition import TextSide

TRAINED = "trained.safetensors"  # what a finished stage has trained, in its own folder


@dataclass
class Parts:
    """The modules of a run. The stages train them in place, each its own."""

    autoencoder: PatchAutoencoder | AutoencoderKL
    text_side: TextSide
    alignment: AlignmentHeads
    layout_unet: UNet2DConditionModel | None
    refine_unet: UNet2DConditionModel
    # Whether the refine UNet takes a mask and the masked image (`diffusion.inpainting`).
    edits: bool = False
