"""Collating: samples of one shape become a batch, with their glyph maps, or from their cached states.

Letters: B batch, C latent channels, h w cells, L tokens, N phrases, D width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vlad.data.batch_buffers import Buffer
from vlad.data.latent_cache.format import CachedSample
from vlad.layout.glyph_map import all_renderable, ignore_mask, render_ink
from vlad.types import Batch, CachedStates, Layout, Sample, TextStates


def collate(samples: list[Sample], buffer: Buffer | None = None, images: torch.Tensor | None = None) -> Batch:
    """A batch of samples of one shape, with their glyph maps, in a buffer (None: in memory of its own).

    `images` (B H W 3, uint8) is the memory for the images, into which some may have been decoded already.
    """
    buffer = buffer or Buffer()
    height, width = samples[0].image.shape[:2]
    images = buffer.empty(len(samples), height, width, 3) if images is None else images
    ink = buffer.empty(len(samples), height, width).zero_()
    image_rows, ink_rows = images.numpy(), ink.numpy()
    for row, sample in enumerate(samples):
        if not np.may_share_memory(image_rows[row], sample.image):
            image_rows[row] = sample.image
        render_ink(ink_rows[row], sample.layout)
    return Batch(
        keys=tuple(sample.key for sample in samples),
        captions=tuple(sample.caption for sample in samples),
        layouts=tuple(sample.layout for sample in samples),
        objects=tuple(sample.objects for sample in samples),
        # In memory B H W 3 (channels last), as they were decoded: nothing is copied, and convolutions like it.
        image_bytes=images.permute(0, 3, 1, 2),
        ink_bytes=ink[:, None],
        ignored=ignored_regions([sample.layout for sample in samples], width, height, buffer),
    )


def collate_cached(samples: list[CachedSample], buffer: Buffer | None = None) -> Batch:
    """A batch of cached samples of one shape, in a buffer (None: in memory of its own)."""
    buffer = buffer or Buffer()
    count, *shape = samples[0].latents.shape
    latents = buffer.empty(count, len(samples), *shape, dtype=torch.float16)  # 2|4 B C h w
    rows = latents.numpy()
    for row, sample in enumerate(samples):
        assert sample.latents.shape == (count, *shape), "samples of one shape have latents of one shape"
        rows[:, row] = sample.latents
    parts = latents.unbind()
    image, image_deviation, glyph, glyph_deviation = parts if count == 4 else (parts[0], None, parts[1], None)
    height, width = shape[-2:]
    plain = [sample.sample for sample in samples]
    return Batch(
        keys=tuple(sample.key for sample in plain),
        captions=tuple(sample.caption for sample in plain),
        layouts=tuple(sample.layout for sample in plain),
        objects=tuple(sample.objects for sample in plain),
        image_bytes=None,
        ink_bytes=None,
        ignored=ignored_regions([sample.layout for sample in plain], width, height, buffer),
        cached=CachedStates(image, image_deviation, glyph, glyph_deviation, _text_states(samples), _v(samples)),
    )


def ignored_regions(layouts: list[Layout], width: int, height: int, buffer: Buffer) -> Tensor | None:
    """B 1 H W (bool), True where nothing is to be learned; None where that is nowhere."""
    if all(map(all_renderable, layouts)):
        return None
    masks = buffer.empty(len(layouts), height, width, dtype=torch.bool)
    for row, layout in enumerate(layouts):
        masks[row] = torch.from_numpy(ignore_mask(layout, width, height))
    return masks[:, None]


def _text_states(samples: list[CachedSample]) -> TextStates | None:
    texts = [sample.text for sample in samples]
    if any(text is None for text in texts):
        return None
    width = texts[0].shape[1]  # type: ignore[union-attr]
    counts = [sample.phrases for sample in samples]
    lengths = [len(text) - 1 - count for text, count in zip(texts, counts, strict=True)]  # type: ignore[arg-type]
    tokens = torch.zeros(len(samples), max(lengths), width)
    local = torch.zeros(len(samples), max(1, *counts), width)
    mask = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    local_mask = torch.zeros(local.shape[:2], dtype=torch.bool)
    global_state = torch.zeros(len(samples), width)
    for row, (text, count) in enumerate(zip(texts, counts, strict=True)):
        values = torch.from_numpy(text.astype(np.float32))  # type: ignore[union-attr]
        global_state[row] = values[0]
        local[row, :count] = values[1 : 1 + count]
        tokens[row, : lengths[row]] = values[1 + count :]
        local_mask[row, :count] = True
        mask[row, : lengths[row]] = True
    return TextStates(tokens, mask, global_state, local, local_mask)


def _v(samples: list[CachedSample]) -> Tensor | None:
    rows = [sample.v for sample in samples if sample.v is not None]
    return torch.from_numpy(np.stack(rows).astype(np.float32)) if len(rows) == len(samples) else None
