"""Region-phrase contrast: the states {t_i} of object phrases against the images' patches inside the objects' boxes.

    (phrase, box) of an object -- prompt --> t_i ------------+
                               -- patches in the box --> r --+--> multi-positive contrast over all regions

After RegionCLIP (Zhong et al., CVPR 2022, eq. 1), symmetric, with equal phrases as positives. An image's whole
embedding cannot say which of two objects is the red one; its parts can.

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

LEAST_SIDE = 1e-3  # of a box, as a share of the image's: a box without area takes the patch it stands on


@dataclass(frozen=True)
class Regions:
    """The objects of a batch whose phrases stand in their prompts.

    rows: R, which image. phrases: R, which phrase of its prompt. boxes: R 4 (left, top, right, bottom; 0..1).
    ids: R, equal where the phrases' words are.
    """

    rows: Tensor
    phrases: Tensor
    boxes: Tensor
    ids: Tensor


def find_regions(prompts: Sequence[Prompt], objects: Sequence[Sequence[ObjectBox]]) -> Regions:
    """The regions of a batch: each object with the phrase of its prompt that has the same words (letter case aside).

    Two objects of one phrase ("a tree", twice) take its places in turn, and the last place for all that follow. An
    object whose phrase is not among the prompt's is left out.
    """
    rows: list[tuple[int, int, int]] = []
    boxes: list[tuple[float, float, float, float]] = []
    for row, (prompt, found) in enumerate(zip(prompts, objects, strict=True)):
        places: dict[str, list[int]] = {}
        for column, phrase in enumerate(prompt.phrases):
            places.setdefault(_words(phrase.text), []).append(column)
        for thing in found:
            if columns := places.get(_words(thing.phrase)):
                column = columns.pop(0) if len(columns) > 1 else columns[0]
                rows.append((row, column, derived_seed(_words(thing.phrase))))
                boxes.append(thing.box)
    table = torch.tensor(rows, dtype=torch.long).reshape(-1, 3)
    return Regions(table[:, 0], table[:, 1], torch.tensor(boxes).reshape(-1, 4), table[:, 2])


def _words(phrase: str) -> str:
    return " ".join(phrase.casefold().split())


def pool_regions(patches: Tensor, rows: Tensor, boxes: Tensor) -> Tensor:
    """The mean patch inside each box, R D, each patch weighted by the area it shares with the box.

    patches: B h w D, row by row from the image's top left. rows: R. boxes: R 4 (left, top, right, bottom; 0..1).
    """
    height, width = patches.shape[1:3]
    boxes = boxes.to(patches)
    across = _overlaps(boxes[:, 0], boxes[:, 2], width)  # R w
    down = _overlaps(boxes[:, 1], boxes[:, 3], height)  # R h
    return torch.einsum("rh,rw,rhwd->rd", down, across, patches[rows])


def _overlaps(start: Tensor, end: Tensor, cells: int) -> Tensor:
    """Shares (R cells, each row adds up to 1) of the stretch from `start` to `end` in the cells of [0, 1]."""
    middle, half = ((start + end) / 2).clamp(0, 1), ((end - start) / 2).clamp_min(LEAST_SIDE / 2)
    edges = torch.linspace(0, 1, cells + 1, device=start.device, dtype=start.dtype)
    low, high = (middle - half)[:, None], (middle + half)[:, None]
    lengths = (torch.minimum(high, edges[1:]) - torch.maximum(low, edges[:-1])).clamp_min(0)
    return lengths / lengths.sum(dim=1, keepdim=True)


def region_phrase_loss(phrases: Tensor, regions: Tensor, ids: Tensor, temperature: Tensor | float) -> Tensor:
    """`multi_positive_loss` over regions: row k of `phrases` and of `regions` (R D) are one object's.

    Objects whose phrases are the same words (equal `ids`, R) match each other's regions. No region at all gives 0.
    """
    relations = torch.where(ids[:, None] == ids, 1, -1)
    return multi_positive_loss(phrases, regions, temperature, relations)


class RegionHead(nn.Module):
    """Projects phrase states and pooled patches into a space of their own, with a learned temperature."""

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
        """The loss over the regions of all ranks, each with any number.

        local_states: B N D with mask B N, {t_i}; a phrase that the prompt's truncation has cut is left out.
        patches: B h w D.
        """
        device = patches.device
        rows, columns, ids = (x.to(device) for x in (regions.rows, regions.phrases, regions.ids))
        kept = local_mask[rows, columns]
        rows, columns, ids = rows[kept], columns[kept], ids[kept]
        pooled = pool_regions(patches, rows, regions.boxes.to(device)[kept])  # R D
        phrases = gather_rows_with_gradient(self.from_phrase(local_states[rows, columns].float()))
        images = gather_rows_with_gradient(self.from_patch(pooled.float()))
        return region_phrase_loss(phrases, images, gather_rows_with_gradient(ids), self.temperature)
