"""Losses on the legibility of the image that the refine stage predicts: OCR perceptual and character segmentation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlad.losses.extra.character_segmentation import CharacterSegmenter, character_segmentation_loss
from vlad.losses.extra.ocr_perceptual import Recogniser, ocr_perceptual_loss
from vlad.models.autoencoder import decode
from vlad.types import Batch


class LegibilityLosses(nn.Module):
    """The terms "ocr" (AnyText) and "segmentation" (TextDiffuser), each if its network is given; all frozen."""

    def __init__(self, autoencoder: Any, recogniser: Recogniser | None, segmenter: CharacterSegmenter | None) -> None:
        super().__init__()
        self.autoencoder, self.recogniser, self.segmenter = autoencoder, recogniser, segmenter
        self.requires_grad_(False)

    def forward(self, batch: Batch, x_0: Tensor, predicted: Tensor, alpha_bar: Tensor) -> dict[str, Tensor]:
        """Scaled latents of the image and of the predicted image (B C h w), alpha_bar_t (B) -> unweighted terms.

        Both images are decoded: the denoiser is not penalised for what the autoencoder loses.
        """
        terms: dict[str, Tensor] = {}
        if self.recogniser is not None:
            with torch.no_grad():
                images = decode(self.autoencoder, x_0)  # B 3 H W
            generated = decode(self.autoencoder, predicted.to(x_0.dtype))
            terms["ocr"] = ocr_perceptual_loss(self.recogniser, images, generated, batch.layouts, alpha_bar)
        if self.segmenter is not None:
            terms["segmentation"] = character_segmentation_loss(self.segmenter, predicted, batch.layouts)
        return terms
