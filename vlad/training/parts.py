"""The models of a run together: autoencoder, text side, alignment heads, layout UNet and refine UNet."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import AutoencoderKL, UNet2DConditionModel

from vlad.losses.alignment_heads import AlignmentHeads
from vlad.models.autoencoder import PatchAutoencoder
from vlad.models.composition import TextSide

TRAINED = "trained.safetensors"  # in a finished stage's folder: what it has trained


@dataclass
class Parts:
    """The models of a run, built once; each stage trains its own in place, and the run publishes them."""

    autoencoder: PatchAutoencoder | AutoencoderKL
    text_side: TextSide
    alignment: AlignmentHeads
    layout_unet: UNet2DConditionModel | None
    refine_unet: UNet2DConditionModel
    # Whether the refine UNet takes a mask and the masked image (`models/inpainting_inputs.py`).
    edits: bool = False

    @property
    def unets(self) -> list[UNet2DConditionModel]:
        """The UNets that there are, in the order of their stages."""
        return [unet for unet in (self.layout_unet, self.refine_unet) if unet is not None]
