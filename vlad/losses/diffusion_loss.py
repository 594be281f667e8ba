"""Diffusion loss L_diff of both stages (Eq. 9; Eq. 6 for the layout)."""

from __future__ import annotations

from collections.abc import Callable

from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from vlad.diffusion.noise_schedule import (
    Scheduler,
    add_noise,
    draw_noise,
    draw_timesteps,
    loss_weights,
    predicted_x_0,
    training_target,
)
from vlad.diffusion.options import NoiseOptions
from vlad.models.unet import denoise
from vlad.types import Conditioning


def diffusion_loss(
    unet: UNet2DConditionModel,
    scheduler: Scheduler,
    options: NoiseOptions,
    x_0: Tensor,
    conditioning: Conditioning,
    z: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    edit: Tensor | None = None,
    extra_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """L_diff = E || target - prediction(x_t, t | t, z) ||^2 (Eq. 9) for scaled latents x_0 (B C h w).

    `pixel_weights` (B 1 H W) are averaged over each cell: 0 leaves a region out. `edit` (B 1+C h w): the inpainting
    channels (`models.inpainting_inputs`). `extra_loss` of the predicted x_0 (B C h w, with gradient) and the timesteps
    is added. Returns the mean loss, and for the logs the loss of each row (B, no gradient) with its timestep (B).
    """
    noise = draw_noise(x_0, options.offset)
    timesteps = draw_timesteps(options, len(x_0), x_0.device)
    x_t = add_noise(scheduler, x_0, noise, timesteps)
    prediction = denoise(unet, x_t, timesteps, conditioning, z, edit).float()
    errors = (prediction - training_target(scheduler, x_0, noise, timesteps)).square()  # B C h w
    if pixel_weights is not None:
        height, width = x_0.shape[-2:]
        errors = errors * F.adaptive_avg_pool2d(pixel_weights, (height, width))
    rows = errors.mean(dim=(1, 2, 3)) * loss_weights(scheduler, timesteps, options.min_snr_gamma)
    loss = rows.mean()
    if extra_loss is not None:
        loss = loss + extra_loss(predicted_x_0(scheduler, prediction, x_t, timesteps), timesteps)
    return loss, rows.detach(), timesteps
