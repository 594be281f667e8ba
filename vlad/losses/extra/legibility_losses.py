"""How well the image that a prediction stands for reads: both losses of the field, for the refine stage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlad.losses.extra.character_segmentation import CharacterSegmenter, character_segmentation_loss
from vlad.losses.extra.ocr_perceptual import Recogniser, ocr_perceptual_loss
from vlad.models.autoencoder import decode
from vlad.types import Batch


class LegibilityLosses(nn.Module):
    """The terms "ocr" (AnyText) and "segmentation" (TextDiffuser), those whose network is given; all frozen."""

    def __init__(self, autoencoder: Any, recogniser: Recogniser | None, segmenter: CharacterSegmenter | None) -> None:
        super().__init__()
        self.autoencoder, self.recogniser, self.segmenter = autoencoder, recogniser, segmenter
        self.requires_grad_(False)

    def forward(self, batch: Batch, x_0: Tensor, predicted: Tensor, shares: Tensor) -> dict[str, Tensor]:
        """Scaled latents of the image and of the prediction (B C h w), alpha_bar_t (B) -> the terms, unweighted.

        Images are compared as the autoencoder shows them: what it loses is not held against the denoiser.
        """
        terms: dict[str, Tensor] = {}
        if self.recogniser is not None:
            with torch.no_grad():
                images = decode(self.autoencoder, x_0)  # B 3 H W
            drawn = decode(self.autoencoder, predicted.to(x_0.dtype))
            terms["ocr"] = ocr_perceptual_loss(self.recogniser, images, drawn, batch.layouts, shares)
        if self.segmenter is not None:
            terms["segmentation"] = character_segmentation_loss(self.segmenter, predicted, batch.layouts)
        return terms
