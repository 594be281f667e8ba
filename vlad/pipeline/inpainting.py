"""Edits as the refine UNet takes them, and their result pasted into the image that was edited."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from vlad.layout.masks import Edit
from vlad.models.autoencoder import PatchAutoencoder
from vlad.models.inpainting_inputs import inpainting_channels, inpainting_inputs


def inputs_of_edits(
    autoencoder: PatchAutoencoder | AutoencoderKL,
    edits: Sequence[Edit | None],
    latents: tuple[int, int, int],
    device: torch.device,
) -> Tensor:
    """The same for edits, B 1+C h w; zero where there is none. `latents`: C h w."""
    channels, height, width = latents
    result = torch.zeros(len(edits), inpainting_channels(channels), height, width, device=device)
    for i, edit in enumerate(edits):  # each on its own: it must not depend on its neighbours
        if edit is not None:
            pixels = torch.from_numpy(edit.image.copy()).permute(2, 0, 1)[None].to(device) / 127.5 - 1
            mask = torch.from_numpy(edit.mask.copy())[None, None].to(device, pixels.dtype)
            result[i] = inpainting_inputs(autoencoder, pixels, mask)[0]
    return result


def pasted(pixels: Tensor, edits: Sequence[Edit | None]) -> Tensor:
    """Images (B 3 H W, 0..1): what was drawn inside the masks, the edited images' own pixels elsewhere."""
    rows = []
    for row, edit in zip(pixels, edits, strict=True):
        if edit is None:
            rows.append(row)
        else:
            kept = torch.from_numpy(edit.image.copy()).permute(2, 0, 1).to(row.dtype) / 255
            rows.append(torch.where(torch.from_numpy(edit.mask.copy()), row, kept))
    return torch.stack(rows)
