"""Inpainting channels: the refine UNet is given the image outside a mask and generates what is inside.

    mask m, 1 where the image is regenerated    B 1 H W  ->  the masked share of every cell   B 1 h w
    the image, grey inside the mask             B 3 H W  ->  its latents                      B C h w

Both are the last channels of the UNet's input, as in Stable Diffusion's inpainting models (arXiv 2112.10752, section
4.5). All zeros mean that no image is given. Letters: B batch, C latent channels, H W pixels, h w cells.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from vlad.models.autoencoder import PatchAutoencoder, latent_moments


def inpainting_channels(latent_channels: int) -> int:
    """The number of inpainting channels: one of the mask, the others of the masked image's latents."""
    return 1 + latent_channels


@torch.no_grad()
def inpainting_inputs(autoencoder: PatchAutoencoder | AutoencoderKL, pixels: Tensor, mask: Tensor) -> Tensor:
    """B 1+C h w of images (B 3 H W in [-1, 1]) and masks (B 1 H W, 1 where regenerated); the latents' mean."""
    masked = (pixels * (1 - mask)).to(autoencoder.dtype)
    latents = latent_moments(autoencoder, masked)[0].to(pixels.dtype)  # B C h w
    height, width = latents.shape[-2:]
    return torch.cat([F.adaptive_avg_pool2d(mask, (height, width)), latents], dim=1)
