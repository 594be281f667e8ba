"""Image editing: masked images as the refine UNet takes them, and its result pasted back into the image.

Letters: B images, C latent channels, h w cells, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from vlad.layout.image_edits import Edit
from vlad.models.autoencoder import PatchAutoencoder
from vlad.models.inpainting_inputs import inpainting_channels, inpainting_inputs
from vlad.utils.errors import UserError


def check_can_edit(model_edits: bool) -> None:
    """Raises UserError for a model that does not edit."""
    if not model_edits:
        raise UserError(
            "This model was not trained to edit images; train one with refine.editing_share, such as"
            " configs/tiny_edit.yaml."
        )


def edit_conditioning(
    autoencoder: PatchAutoencoder | AutoencoderKL,
    edits: Sequence[Edit | None],
    latent_shape: tuple[int, int, int],
    device: torch.device,
) -> Tensor:
    """Mask and latents of the masked image for each edit, B 1+C h w; zero where there is none."""
    channels, height, width = latent_shape
    result = torch.zeros(len(edits), inpainting_channels(channels), height, width, device=device)
    for i, edit in enumerate(edits):  # one by one: an edit must not depend on its neighbours
        if edit is not None:
            pixels = torch.from_numpy(edit.image.copy()).permute(2, 0, 1)[None].to(device) / 127.5 - 1
            mask = torch.from_numpy(edit.mask.copy())[None, None].to(device, pixels.dtype)
            result[i] = inpainting_inputs(autoencoder, pixels, mask)[0]
    return result


def paste_edits(pixels: Tensor, edits: Sequence[Edit | None]) -> Tensor:
    """Images (B 3 H W, 0..1): generated inside the masks, the edited images' own pixels elsewhere."""
    rows = []
    for row, edit in zip(pixels, edits, strict=True):
        if edit is None:
            rows.append(row)
        else:
            kept = torch.from_numpy(edit.image.copy()).permute(2, 0, 1).to(row.dtype) / 255
            rows.append(torch.where(torch.from_numpy(edit.mask.copy()), row, kept))
    return torch.stack(rows)
