"""Inpainting samples for training: a mask over a part of the image, and caption and glyph map of that part alone.

    image, layout, caption -> mask -> the lines it touches -> their glyph map, and for half of them a plain caption

Letters: B batch, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vlad.layout.glyph_map import render_ink
from vlad.layout.masks import lines_touching, random_mask
from vlad.models.text_encoder.prompt import plain_prompt
from vlad.types import Batch

# The share of edits whose caption says the words in the mask and nothing else.
PLAIN_SHARE = 0.5


@dataclass(frozen=True)
class EditBatch:
    """A batch of which some samples are edits: their masks (B 1 H W, 1 where generated), and which they are (B)."""

    batch: Batch
    masks: Tensor
    chosen: Tensor


def make_edits(batch: Batch, share: float) -> EditBatch:
    """Makes about `share` of a batch's samples edits, chosen by torch's CPU generator."""
    assert batch.ink_bytes is not None, "the batch holds cached states"
    size, _, height, width = batch.ink_bytes.shape
    rng = np.random.default_rng(int(torch.randint(2**62, ())))
    chosen = rng.random(size) < share
    masks = np.zeros((size, 1, height, width), dtype=np.float32)
    captions, objects = list(batch.captions), list(batch.objects)
    ink_bytes = batch.ink_bytes.clone()
    for i in np.flatnonzero(chosen):
        layout = batch.layouts[i]
        mask = random_mask(rng, layout, width, height)
        masks[i, 0] = mask
        lines = lines_touching(mask, layout)
        if len(lines) < len(layout.lines):
            ink = np.zeros((height, width), dtype=np.uint8)
            render_ink(ink, replace(layout, lines=lines))
            ink_bytes[i, 0] = torch.from_numpy(ink)
        if rng.random() < PLAIN_SHARE:
            captions[i], objects[i] = plain_prompt([line.text for line in lines if line.valid]), ()
    device = ink_bytes.device
    made = replace(batch, captions=tuple(captions), objects=tuple(objects), ink_bytes=ink_bytes)
    return EditBatch(made, torch.from_numpy(masks).to(device), torch.from_numpy(chosen).to(device))
