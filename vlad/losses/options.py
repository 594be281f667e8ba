"""Options of the losses: weights of Eq. 8, dropout for guidance, noise on z (Eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vlad.utils.errors import UserError

AlignmentKind = Literal["one-directional", "symmetric", "multi-positive", "sigmoid"]


MOST_VARIANTS = 64  # of a caption


@dataclass(frozen=True)
class LossOptions:
    """Weights and droppings of Eq. 6 to 9."""

    # lambda of Eq. 8; L_align has weight `align_weight` (1 in the paper, 0 leaves it out).
    diffusion_weight: float = 1.0
    align_weight: float = 1.0
    # How texts and images are contrasted; one-directional is the paper's. Accumulated batches add no negatives.
    alignment: AlignmentKind = "one-directional"
    # v: the mean of the vision tower's features, or read by learned queries that know each patch's place.
    image_pooling: Literal["mean", "attention"] = "mean"
    # t: the CCM's pooled vector (the paper's f_CCM in one vector), or that and the sum over its tokens.
    text_pooling: Literal["pooled", "tokens"] = "pooled"
    # Beside L_align: phrases against the patches of their boxes, text-image matching, captions predicted word by word.
    region_weight: float = 0.0
    matching_weight: float = 0.0
    captioning_weight: float = 0.0
    # For each caption, so many with something swapped (NegCLIP), and so many with synonyms, as positives (SemCLIP).
    # Each is one more pass of the text side over the batch.
    hard_negatives: int = 0
    rewordings: int = 0
    # Shares of samples that are trained without t and without z, each on its own: what guidance needs.
    text_dropout: float = 0.1
    layout_dropout: float = 0.1
    # sigma of Eq. 6: up to this much noise is added to the true z in refine training.
    layout_noise: float = 0.1
    # Likewise for the decoder of a PatchAutoencoder: it learns to forgive what a sampler leaves behind.
    latent_noise: float = 0.2
    # Its errors count more where a pixel stands out from its image: strokes are few, and would come out blended with
    # the ground (docs/LOG.md).
    contrast_weight: float = 0.0
    # lambda of `line_weights`: every line of text adds so much of its own mean error, however small it is.
    line_weight: float = 0.0
    # Of the refine stage, on the image that its prediction stands for: what an OCR model sees in the lines (AnyText),
    # and which letter stands where (TextDiffuser). Either is off at 0; docs/finetune.md has what they brought.
    ocr_weight: float = 0.0
    segmentation_weight: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.text_dropout <= 1 and 0 <= self.layout_dropout <= 1):
            raise UserError("losses: text_dropout and layout_dropout are shares, 0 to 1.")
        extras = [self.region_weight, self.matching_weight, self.captioning_weight]
        extras += [self.line_weight, self.ocr_weight, self.segmentation_weight]
        noises = (self.layout_noise, self.latent_noise)
        if min(self.diffusion_weight, self.align_weight, self.contrast_weight, *extras, *noises) < 0:
            raise UserError("losses: weights and noise strengths must not be negative.")
        if self.matching_weight and not self.align_weight:
            raise UserError(
                "losses.matching_weight: its negatives are those that L_align finds alike; set align_weight, too."
            )
        if not (0 <= self.hard_negatives <= MOST_VARIANTS and 0 <= self.rewordings <= MOST_VARIANTS):
            raise UserError(
                f"losses: hard_negatives and rewordings must be from 0 to {MOST_VARIANTS}: each is one more pass of the"
                " text side over the batch."
            )
        if self.alignment == "one-directional" and (self.hard_negatives or self.rewordings):
            raise UserError(
                "losses: with alignment: one-directional no image chooses among texts, so hard_negatives and"
                " rewordings have no place; set losses.alignment to symmetric, multi-positive or sigmoid."
            )
