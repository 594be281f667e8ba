"""Options of the losses: weights (Eq. 8), dropout of conditions for guidance, noise on z (Eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vlad.utils.errors import UserError

AlignmentKind = Literal["one-directional", "symmetric", "multi-positive", "sigmoid"]
MAX_VARIANTS = 64  # of a caption


@dataclass(frozen=True)
class LossOptions:
    """Weights, dropout and noise of the losses (Eq. 3, 6 to 9)."""

    # lambda of Eq. 8, the weight of L_diff.
    diffusion_weight: float = 1.0
    # Weight of L_align (1 in the paper; 0: no L_align).
    align_weight: float = 1.0
    # Kind of contrastive loss; one-directional is the paper's. Gradient accumulation adds no negatives.
    alignment: AlignmentKind = "one-directional"
    # How v is pooled: the mean of the vision tower's features, or attention of learned queries with positions.
    image_pooling: Literal["mean", "attention"] = "mean"
    # How t is pooled: the CCM's pooled vector (the paper's f_CCM), or that plus the sum over its tokens.
    text_pooling: Literal["pooled", "tokens"] = "pooled"
    # Weight of region-phrase contrast, an optional loss of the text side.
    region_weight: float = 0.0
    # Weight of image-text matching (ITM), an optional loss of the text side.
    matching_weight: float = 0.0
    # Weight of the captioning loss, an optional loss of the text side.
    captioning_weight: float = 0.0
    # Hard negatives added to L_align for each caption, with something swapped (NegCLIP). Each costs one more pass of
    # the text side over the batch.
    hard_negatives: int = 0
    # Positives added to L_align for each caption, with synonyms (SemCLIP), at the same cost.
    rewordings: int = 0
    # The share of samples trained without t, as classifier-free guidance needs.
    text_dropout: float = 0.1
    # The share of samples trained without z, independently.
    layout_dropout: float = 0.1
    # sigma of Eq. 6: the largest strength of the noise on the true z in the refine stage.
    layout_noise: float = 0.1
    # Likewise for the latents that a PatchAutoencoder's decoder trains on: it learns to tolerate a sampler's errors.
    latent_noise: float = 0.2
    # How much more the autoencoder's errors weigh at pixels that contrast with the image's median colour: strokes are
    # few, and would blend into the background.
    contrast_weight: float = 0.0
    # Weight of the error of the autoencoder's image gradients: keeps strokes and edges sharp.
    gradient_weight: float = 0.0
    # Of L_diff in the layout and refine stages: every line of text adds its mean error times this, whatever its area.
    line_weight: float = 0.0
    # Weight of the OCR perceptual loss on the image that the refine stage predicts (AnyText; needs the extra ocr-loss).
    ocr_weight: float = 0.0
    # Weight of the character segmentation loss on it (TextDiffuser).
    segmentation_weight: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.text_dropout <= 1 and 0 <= self.layout_dropout <= 1):
            raise UserError("losses: text_dropout and layout_dropout must be from 0 to 1.")
        extras = [self.region_weight, self.matching_weight, self.captioning_weight]
        extras += [self.line_weight, self.ocr_weight, self.segmentation_weight]
        extras += [self.contrast_weight, self.gradient_weight]
        noises = (self.layout_noise, self.latent_noise)
        if min(self.diffusion_weight, self.align_weight, *extras, *noises) < 0:
            raise UserError("losses: weights and noise strengths must not be negative.")
        if self.matching_weight and not self.align_weight:
            raise UserError(
                "losses.matching_weight samples its negatives by the similarities of L_align; set align_weight, too."
            )
        if not (0 <= self.hard_negatives <= MAX_VARIANTS and 0 <= self.rewordings <= MAX_VARIANTS):
            raise UserError(
                f"losses: hard_negatives and rewordings must be from 0 to {MAX_VARIANTS}: each is one more pass of the"
                " text side over the batch."
            )
        if self.alignment == "one-directional" and (self.hard_negatives or self.rewordings):
            raise UserError(
                "losses.alignment: one-directional compares no image with several texts, so hard_negatives and"
                " rewordings have no effect; set it to symmetric, multi-positive or sigmoid."
            )
