"""Region-phrase contrastive loss: states {t_i} of object phrases against image patches inside the objects' boxes.

    (phrase, box) of an object -- prompt --> t_i ------------+
                               -- patches in the box --> r --+--> multi-positive contrast over all regions

After RegionCLIP (Zhong et al., CVPR 2022, eq. 1), symmetric, with equal phrases as positives. The embedding
of a whole image cannot tell which of two objects is the red one; those of its regions can.

Letters: B batch, N phrases of a prompt, R regions of all images, h w patches, D widths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlad.losses.contrastive import clamped_temperature, multi_positive_loss
from vlad.types import ObjectBox, Prompt
from vlad.utils.distributed import derived_seed, gather_rows_with_gradient

MIN_BOX_SIDE = 1e-3  # as a share of the image's: a box without area pools the patch that it lies on


@dataclass(frozen=True)
class Regions:
    """The objects of a batch whose phrases are in their prompts.

    rows: R, the image's index. phrases: R, the phrase's index in its prompt. boxes: R 4 (left, top, right, bottom;
    0..1). ids: R, equal for equal words.
    """

    rows: Tensor
    phrases: Tensor
    boxes: Tensor
    ids: Tensor


def find_regions(prompts: Sequence[Prompt], objects: Sequence[Sequence[ObjectBox]]) -> Regions:
    """The regions of a batch: each object with the phrase of its prompt that has the same words (ignoring letter case).

    Objects of one phrase ("a tree", twice) take its occurrences in turn, and the last one if there are too few.
    An object whose phrase is not among the prompt's is left out.
    """
    rows: list[tuple[int, int, int]] = []
    boxes: list[tuple[float, float, float, float]] = []
    for row, (prompt, found) in enumerate(zip(prompts, objects, strict=True)):
        occurrences: dict[str, list[int]] = {}
        for column, phrase in enumerate(prompt.phrases):
            occurrences.setdefault(_words(phrase.text), []).append(column)
        for item in found:
            if columns := occurrences.get(_words(item.phrase)):
                column = columns.pop(0) if len(columns) > 1 else columns[0]
                rows.append((row, column, derived_seed(_words(item.phrase))))
                boxes.append(item.box)
    table = torch.tensor(rows, dtype=torch.long).reshape(-1, 3)
    return Regions(table[:, 0], table[:, 1], torch.tensor(boxes).reshape(-1, 4), table[:, 2])


def _words(phrase: str) -> str:
    return " ".join(phrase.casefold().split())


def pool_regions(patches: Tensor, rows: Tensor, boxes: Tensor) -> Tensor:
    """The mean of the patches inside each box, R D, each weighted by the area that it shares with the box.

    patches: B h w D, row by row from the image's top left. rows: R. boxes: R 4 (left, top, right, bottom; 0..1).
    """
    height, width = patches.shape[1:3]
    boxes = boxes.to(patches)
    across = _overlaps(boxes[:, 0], boxes[:, 2], width)  # R w
    down = _overlaps(boxes[:, 1], boxes[:, 3], height)  # R h
    return torch.einsum("rh,rw,rhwd->rd", down, across, patches[rows])


def _overlaps(start: Tensor, end: Tensor, cells: int) -> Tensor:
    """The shares of the interval from `start` to `end` in the cells of [0, 1]: R cells, each row adds up to 1."""
    middle, half = ((start + end) / 2).clamp(0, 1), ((end - start) / 2).clamp_min(MIN_BOX_SIDE / 2)
    edges = torch.linspace(0, 1, cells + 1, device=start.device, dtype=start.dtype)
    low, high = (middle - half)[:, None], (middle + half)[:, None]
    lengths = (torch.minimum(high, edges[1:]) - torch.maximum(low, edges[:-1])).clamp_min(0)
    return lengths / lengths.sum(dim=1, keepdim=True)


def region_phrase_loss(phrases: Tensor, regions: Tensor, ids: Tensor, temperature: Tensor | float) -> Tensor:
    """`multi_positive_loss` over regions: row k of `phrases` and of `regions` (R D) belong to one object.

    Objects with equal phrases (equal `ids`, R) match each other's regions. Without regions it is 0.
    """
    relations = torch.where(ids[:, None] == ids, 1, -1)
    return multi_positive_loss(phrases, regions, temperature, relations)


class RegionHead(nn.Module):
    """Projects phrase states and pooled patches into their own shared space, with a learned temperature."""

    def __init__(self, text_width: int, patch_width: int, width: int = 128, temperature: float = 0.07) -> None:
        super().__init__()
        self.from_phrase = nn.Linear(text_width, width, bias=False)
        self.from_patch = nn.Linear(patch_width, width, bias=False)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    @property
    def temperature(self) -> Tensor:
        """tau, clamped like the AlignmentHead's."""
        return clamped_temperature(self.log_temperature)

    def forward(self, local_states: Tensor, local_mask: Tensor, patches: Tensor, regions: Regions) -> Tensor:
        """The loss over the regions of all ranks, of which each may have any number.

        local_states: B N D with mask B N, {t_i}; phrases cut off by truncation are left out. patches: B h w D.
        """
        device = patches.device
        rows, columns, ids = (x.to(device) for x in (regions.rows, regions.phrases, regions.ids))
        kept = local_mask[rows, columns]
        rows, columns, ids = rows[kept], columns[kept], ids[kept]
        pooled = pool_regions(patches, rows, regions.boxes.to(device)[kept])  # R D
        phrases = gather_rows_with_gradient(self.from_phrase(local_states[rows, columns].float()))
        images = gather_rows_with_gradient(self.from_patch(pooled.float()))
        return region_phrase_loss(phrases, images, gather_rows_with_gradient(ids), self.temperature)
