"""The character-aware loss (TextDiffuser, arXiv 2305.10855, section 3.2): which letter stands where, seen in latents.

    L_char = mean over pixels of -log softmax(S(x_0'))[letter of the pixel]

S is a small network that tells the letter at every place of an image from its latents: fitted first, on rendered signs
and the run's own images, then frozen. x_0' is the x_0 that the denoiser's prediction stands for. Letters: B batch,
C latent channels, h w cells, K classes (the ground and the characters from space to ~).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

from vlad.layout.polygons import letter_cells
from vlad.types import Batch, Layout

FINER = 4  # labels a latent cell, along one side
GROUND, FIRST, LAST = 0, 32, 126
CLASSES = 1 + LAST - FIRST + 1
IGNORED = 255  # where a line stands that cannot be read, or a character that is no class
WIDTH = 96


class CharacterSegmenter(nn.Module):
    """S: latents B C h w -> scores of the classes, B K 4h 4w."""

    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(latent_channels, WIDTH, 3, padding=1),
            nn.GroupNorm(8, WIDTH),
            nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.GroupNorm(8, WIDTH),
            nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH * FINER**2 // 2, 3, padding=1),
            nn.PixelShuffle(FINER),
            nn.SiLU(),
            nn.Conv2d(WIDTH // 2, CLASSES, 3, padding=1),
        )

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)


def character_labels(layouts: tuple[Layout, ...], height: int, width: int) -> Tensor:
    """The class at every place, B H W (int64): letters stand at constant pitch along their lines' quads."""
    labels = np.zeros((len(layouts), height, width), dtype=np.uint8)
    for row, layout in enumerate(layouts):
        canvas = Image.new("L", (width, height))
        draw = ImageDraw.Draw(canvas)
        for line in layout.lines:
            cells = letter_cells(line.polygon, max(1, len(line.text)))
            for place, cell in enumerate(cells):
                known = line.valid and place < len(line.text) and FIRST <= ord(line.text[place]) <= LAST
                colour = ord(line.text[place]) - FIRST + 1 if known else IGNORED
                draw.polygon([(x * width - 0.5, y * height - 0.5) for x, y in cell], fill=colour)
        labels[row] = np.asarray(canvas)
    return torch.from_numpy(labels).long()


def character_segmentation_loss(segmenter: nn.Module, predicted: Tensor, layouts: tuple[Layout, ...]) -> Tensor:
    """L_char of the formula above for latents B C h w; 0 where every place is ignored."""
    height, width = predicted.shape[-2:]
    labels = character_labels(layouts, height * FINER, width * FINER).to(predicted.device)
    if not (labels != IGNORED).any():
        return predicted.sum() * 0
    return F.cross_entropy(segmenter(predicted), labels, ignore_index=IGNORED)


def fit_segmenter(
    latents_of: Callable[[Batch], Tensor], batches: Callable[[int], Batch], channels: int, steps: int, seed: int
) -> tuple[CharacterSegmenter, float]:
    """A segmenter fitted to `steps` batches, by number; also the share of letters' places that it gets right at last.

    `latents_of` gives x_0 (B C h w) of a batch. The process's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        segmenter = CharacterSegmenter(channels)
    optimizer = torch.optim.AdamW(segmenter.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    right = total = 0
    for step in range(steps):
        batch = batches(step)
        with torch.no_grad():
            x_0 = latents_of(batch)
        segmenter.to(x_0.device)
        loss = character_segmentation_loss(segmenter, x_0, batch.layouts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step >= steps - 8:
            height, width = x_0.shape[-2:]
            labels = character_labels(batch.layouts, height * FINER, width * FINER).to(x_0.device)
            letters = (labels != IGNORED) & (labels != GROUND)
            right += int((segmenter(x_0).argmax(dim=1) == labels)[letters].sum())
            total += int(letters.sum())
    return segmenter.requires_grad_(False).eval(), right / max(1, total)
