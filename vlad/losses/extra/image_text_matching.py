"""Image-text matching (ITM): does this text describe this image? (ALBEF, Li et al., 2021, eq. 3; BLIP, ICML 2022)

    text tokens -- cross-attention to the image's patches --> one logit

    L_match = -mean( y log p + (1 - y) log(1 - p) )

over the B pairs of a batch (y = 1) and two hard negatives per sample (y = 0): a text for each image and an image for
each text, sampled from the rank's own batch with the softmax of the contrastive loss's similarities.

Letters: B batch, K text tokens, P patches, D widths.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlad.utils.distributed import mean_over_ranks


class MatchingHead(nn.Module):
    """One decoder layer, in which text tokens attend to image patches; the first token gives the logit."""

    def __init__(self, text_width: int, patch_width: int, width: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.from_text = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, width))
        self.from_patch = nn.Sequential(nn.LayerNorm(patch_width), nn.Linear(patch_width, width))
        self.layer = nn.TransformerDecoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.to_logit = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))

    def forward(self, tokens: Tensor, mask: Tensor, patches: Tensor) -> Tensor:
        """Logits (B) of text tokens B K D (mask B K, True for tokens) and patches B P D, row by row."""
        x = self.layer(self.from_text(tokens.float()), self.from_patch(patches.float()), tgt_key_padding_mask=~mask)
        return self.to_logit(x[:, 0])[:, 0]


@torch.no_grad()
def sample_hard_negatives(similarities: Tensor, relations: Tensor) -> tuple[Tensor, Tensor]:
    """Samples for each row of `similarities` (B B) a column that does not match it, with the softmax of the row.

    relations: B B; only pairs of -1 are negatives (`contrastive.relations_from_ids`). Returns the columns (B) and
    whether the row has a negative (B). Uses torch's generator of the device.
    """
    negative = relations < 0
    present = negative.any(dim=1)
    shares = similarities.masked_fill(~negative, -torch.inf).softmax(dim=1)
    shares = shares.masked_fill(~present[:, None], 1.0)  # a row without negatives samples any column, unused
    return torch.multinomial(shares, 1)[:, 0], present


def image_text_matching_loss(
    head: MatchingHead, tokens: Tensor, mask: Tensor, patches: Tensor, similarities: Tensor, relations: Tensor
) -> Tensor:
    """L_match, see above, for DDP to average.

    tokens B K D with mask B K, patches B P D: row i of each from one sample of this rank. similarities B B: the
    contrastive loss's, cos(t_i, v_j) / tau. relations B B: -1 for the pairs that are negatives.
    """
    images, has_image = sample_hard_negatives(similarities, relations)  # for each text
    texts, has_text = sample_hard_negatives(similarities.T, relations.T)  # for each image
    own = torch.arange(len(tokens), device=tokens.device)
    text_rows = torch.cat([own, own[has_image], texts[has_text]])
    image_rows = torch.cat([own, images[has_image], own[has_text]])
    logits = head(tokens[text_rows], mask[text_rows], patches[image_rows])  # up to 3 B
    targets = torch.zeros_like(logits)
    targets[: len(own)] = 1
    total = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return mean_over_ranks(total, torch.tensor(float(len(logits)), device=logits.device))
