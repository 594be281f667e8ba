"""Sampling: any diffusers solver over a plain function of (x_t, t), and hierarchical guidance as such a function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from vlad.diffusion.noise import Scheduler
from vlad.diffusion.unets import denoise
from vlad.records import Conditioning

Predict = Callable[[Tensor, Tensor], Tensor]


def guided(
    unet: UNet2DConditionModel, conditioning: Conditioning, z: Tensor | None, text_scale: float, layout_scale: float
) -> Predict:
    """The guided prediction as a function of x_t and t.

        e = e(0, 0) + s_z (e(0, z) - e(0, 0)) + s_t (e(t, z) - e(0, z))

    s_t = text_scale, s_z = layout_scale; without z the terms in s_z vanish. A branch whose coefficient is zero
    is not computed, and the others run as one batch: scales of 1 cost one evaluation a step, equal scales two.
    """
    branches: list[tuple[float, bool, bool]] = [(text_scale, True, True)]  # coefficient, with t, with z
    if z is None:
        branches.append((1 - text_scale, False, True))
    else:
        branches += [(layout_scale - text_scale, False, True), (1 - layout_scale, False, False)]
    branches = [branch for branch in branches if branch[0] != 0]

    batch, device = len(conditioning.tokens), conditioning.tokens.device
    rows = torch.arange(batch, device=device).repeat(len(branches))
    with_text = torch.tensor([text for _, text, _ in branches], device=device).repeat_interleave(batch)
    all_conditioning = conditioning.select(rows).dropped(with_text)
    all_z = None
    if z is not None:
        all_z = torch.cat([z if with_z else torch.zeros_like(z) for _, _, with_z in branches])

    def predict(x_t: Tensor, timestep: Tensor) -> Tensor:
        inputs = x_t.repeat(len(branches), 1, 1, 1)
        outputs = denoise(unet, inputs, timestep.expand(len(inputs)), all_conditioning, all_z)
        parts = outputs.chunk(len(branches))
        return torch.stack([scale * part for (scale, _, _), part in zip(branches, parts, strict=True)]).sum(dim=0)

    return predict


@torch.no_grad()
def sample_latents(
    predict: Predict,
    scheduler: Scheduler,
    noise: Tensor,
    steps: int,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Scaled latents from Gaussian noise (B C h w) by `steps` of the scheduler's solver; deterministic."""
    scheduler.set_timesteps(steps, device=noise.device)
    x_t = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for number, timestep in enumerate(scheduler.timesteps):
        inputs = scheduler.scale_model_input(x_t, timestep) if hasattr(scheduler, "scale_model_input") else x_t
        x_t = scheduler.step(predict(inputs, timestep), timestep, x_t, return_dict=False)[0]
        if on_step is not None:
            on_step(number)
    return x_t
