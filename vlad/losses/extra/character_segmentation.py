"""Character segmentation loss (TextDiffuser's character-aware loss, arXiv 2305.10855, section 3.2), in latent space.

    L_char = mean over pixels of -log softmax(S(x_0'))[letter of the pixel]

S is a small network that predicts the character at every pixel of an image from its latents; it is trained before, on
rendered signs and the run's own images, and frozen. x_0' is the predicted x_0. Letters: B batch, C latent channels,
h w cells, K classes (background and the characters from space to ~).
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

UPSCALE = 4  # labels per latent cell along one side
BACKGROUND, FIRST, LAST = 0, 32, 126
CLASSES = 1 + LAST - FIRST + 1
IGNORED = 255  # labels of illegible lines and of characters without a class
WIDTH = 96
ACCURACY_STEPS = 8


class CharacterSegmenter(nn.Module):
    """S: latents B C h w -> logits of the classes, B K 4h 4w."""

    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(latent_channels, WIDTH, 3, padding=1),
            nn.GroupNorm(8, WIDTH),
            nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.GroupNorm(8, WIDTH),
            nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH * UPSCALE**2 // 2, 3, padding=1),
            nn.PixelShuffle(UPSCALE),
            nn.SiLU(),
            nn.Conv2d(WIDTH // 2, CLASSES, 3, padding=1),
        )

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)


def character_labels(layouts: tuple[Layout, ...], height: int, width: int) -> Tensor:
    """The class of every pixel, B H W (int64), with characters at constant pitch along their lines' quads."""
    labels = np.zeros((len(layouts), height, width), dtype=np.uint8)
    for row, layout in enumerate(layouts):
        canvas = Image.new("L", (width, height))
        draw = ImageDraw.Draw(canvas)
        for line in layout.lines:
            cells = letter_cells(line.polygon, max(1, len(line.text)))
            for position, cell in enumerate(cells):
                known = line.valid and position < len(line.text) and FIRST <= ord(line.text[position]) <= LAST
                label = ord(line.text[position]) - FIRST + 1 if known else IGNORED
                draw.polygon([(x * width - 0.5, y * height - 0.5) for x, y in cell], fill=label)
        labels[row] = np.asarray(canvas)
    return torch.from_numpy(labels).long()


def character_segmentation_loss(segmenter: nn.Module, predicted: Tensor, layouts: tuple[Layout, ...]) -> Tensor:
    """L_char, see above, of latents B C h w; 0 if every pixel is ignored."""
    height, width = predicted.shape[-2:]
    labels = character_labels(layouts, height * UPSCALE, width * UPSCALE).to(predicted.device)
    if not (labels != IGNORED).any():
        return predicted.sum() * 0
    return F.cross_entropy(segmenter(predicted), labels, ignore_index=IGNORED)


def fit_segmenter(
    latents_of: Callable[[Batch], Tensor], batches: Callable[[int], Batch], channels: int, steps: int, seed: int
) -> tuple[CharacterSegmenter, float]:
    """Trains a segmenter on `batches(0)` to `batches(steps - 1)`; returns it frozen, with its accuracy.

    The accuracy is that of the characters' pixels over the last ACCURACY_STEPS steps. `latents_of` gives x_0 (B C h w)
    of a batch. The process's random state does not change.
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
        if step >= steps - ACCURACY_STEPS:
            height, width = x_0.shape[-2:]
            labels = character_labels(batch.layouts, height * UPSCALE, width * UPSCALE).to(x_0.device)
            characters = (labels != IGNORED) & (labels != BACKGROUND)
            right += int((segmenter(x_0).argmax(dim=1) == labels)[characters].sum())
            total += int(characters.sum())
    return segmenter.requires_grad_(False).eval(), right / max(1, total)
