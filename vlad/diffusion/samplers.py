"""Sampling: any diffusers solver over a plain function of (x_t, t), and hierarchical guidance as such a function.

Letters: B batch, C latent channels, h w cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from torch import Tensor

from vlad.diffusion.noise import NoiseOptions
from vlad.diffusion.unets import denoise
from vlad.errors import UserError, did_you_mean
from vlad.records import Conditioning, OwnStates

Predict = Callable[[Tensor, Tensor], Tensor]
# Called after step number n at timestep t with x_t; what it returns takes x_t's place.
OnStep = Callable[[int, Tensor, Tensor], Tensor]

SOLVERS: dict[str, type[SchedulerMixin]] = {
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "flow-euler": FlowMatchEulerDiscreteScheduler,
}
_DIFFUSION_ONLY = ("ddim", "euler")
_FLOW_ONLY = ("flow-euler",)


def build_solver(name: str, process: NoiseOptions) -> SchedulerMixin:
    """The named solver for what a UNet was trained on. Raises UserError for one that does not fit it."""
    if name not in SOLVERS:
        raise UserError(f"There is no solver {name!r}.{did_you_mean(name, SOLVERS)} Known: {', '.join(SOLVERS)}.")
    is_flow = process.prediction == "flow"
    if name in (_DIFFUSION_ONLY if is_flow else _FLOW_ONLY):
        fitting = [known for known in SOLVERS if known not in (_DIFFUSION_ONLY if is_flow else _FLOW_ONLY)]
        raise UserError(
            f"The solver {name} does not fit a model that was trained to predict {process.prediction}; choose"
            f" {', '.join(fitting)}."
        )
    if is_flow:
        if name == "flow-euler":
            return FlowMatchEulerDiscreteScheduler(num_train_timesteps=process.train_timesteps)
        return SOLVERS[name](
            num_train_timesteps=process.train_timesteps, prediction_type="flow_prediction", use_flow_sigmas=True
        )
    options: dict[str, Any] = {
        "num_train_timesteps": process.train_timesteps,
        "beta_schedule": process.beta_schedule,
        "beta_start": process.beta_start,
        "beta_end": process.beta_end,
        "prediction_type": process.prediction,
        "rescale_betas_zero_snr": process.zero_terminal_snr,
        "timestep_spacing": "trailing",
    }
    if name == "ddim":
        options["clip_sample"] = False
    return SOLVERS[name](**options)


def check_scheduler(scheduler: SchedulerMixin, process: NoiseOptions, stage: str) -> None:
    """Raises UserError when a scheduler that somebody has set undoes other noise than the stage was trained with."""
    stored = scheduler.config
    # FlowMatchEuler has no prediction_type: it knows no other.
    prediction = stored.get("prediction_type", "flow")
    found = {
        "prediction": {"flow_prediction": "flow", "original_sample": "sample"}.get(prediction, prediction),
        "train_timesteps": stored.num_train_timesteps,
    }
    if process.prediction != "flow":
        found["beta_schedule"] = stored.get("beta_schedule")
        found["zero_terminal_snr"] = bool(stored.get("rescale_betas_zero_snr", False))
        if process.beta_schedule != "squaredcos_cap_v2":
            found |= {"beta_start": stored.get("beta_start"), "beta_end": stored.get("beta_end")}
    for name, value in found.items():
        trained = getattr(process, name)
        if value != trained:
            raise UserError(
                f"The {stage} scheduler {type(scheduler).__name__} does not fit: its {name} is {value!r}, and the"
                f" {stage} UNet was trained with {trained!r}; make one with build_solver, or from_config of the"
                " scheduler that came with the model."
            )


def guided(
    unet: UNet2DConditionModel,
    conditioning: Conditioning,
    z: Tensor | None,
    text_scale: float,
    layout_scale: float,
    rescale: float = 0.0,
    negative: Conditioning | None = None,
    edit: Tensor | None = None,
) -> Predict:
    """The guided prediction as a function of x_t and t, in the precision of x_t whatever the UNet's.

        e = e(n, 0) + s_z (e(n, z) - e(n, 0)) + s_t (e(t, z) - e(n, z))

    s_t = text_scale, s_z = layout_scale; without z the terms in s_z vanish. n is the negative prompt's conditioning,
    or that of no prompt. A branch whose coefficient is zero is not computed, and the others run as one batch: scales
    of 1 cost one evaluation a step, equal scales two. `rescale` is phi of Lin et al. 2023 (arXiv 2305.08891, Eq. 15,
    16): how far e is brought back to the standard deviation of e(t, z), which large scales enlarge. `edit` (B 1+C h w,
    `inpainting.edit_inputs`) is given to every branch.
    """
    branches: list[tuple[float, bool, bool]] = [(text_scale, True, True)]  # coefficient, with t, with z
    if z is None:
        branches.append((1 - text_scale, False, True))
    else:
        branches += [(layout_scale - text_scale, False, True), (1 - layout_scale, False, False)]
    branches = [branch for branch in branches if branch[0] != 0]

    dtype = unet.dtype  # asked once: diffusers walks over all modules for it
    batch, device = len(conditioning.tokens), conditioning.tokens.device
    without = conditioning.dropped(torch.zeros(batch, dtype=torch.bool, device=device))
    without = without if negative is None else negative
    all_conditioning = joined([conditioning if with_text else without for _, with_text, _ in branches], dtype)
    all_z = None
    if z is not None:
        all_z = torch.cat([z if with_z else torch.zeros_like(z) for _, _, with_z in branches]).to(dtype)
    all_edit = None if edit is None else edit.repeat(len(branches), 1, 1, 1).to(dtype)

    def predict(x_t: Tensor, timestep: Tensor) -> Tensor:
        inputs = x_t.repeat(len(branches), 1, 1, 1).to(dtype)
        outputs = denoise(unet, inputs, timestep.expand(len(inputs)), all_conditioning, all_z, all_edit).to(x_t.dtype)
        parts = outputs.chunk(len(branches))
        result = torch.stack([scale * part for (scale, _, _), part in zip(branches, parts, strict=True)]).sum(dim=0)
        if rescale and branches[0][1]:
            wanted = result * parts[0].std(dim=(1, 2, 3), keepdim=True) / result.std(dim=(1, 2, 3), keepdim=True)
            result = rescale * wanted + (1 - rescale) * result
        return result

    return predict


def joined(parts: Sequence[Conditioning], dtype: torch.dtype | None = None) -> Conditioning:
    """The rows of all parts, which have one width K, one after the other; dtype None: as they are."""

    def cat(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat(list(tensors)).to(dtype=dtype)

    own = None
    if all(part.own is not None for part in parts):
        states = [part.own for part in parts if part.own is not None]
        pooled = [(state.pooled, state.empty_pooled) for state in states]
        own = OwnStates(
            cat(state.tokens for state in states),
            cat(x for x, _ in pooled if x is not None) if pooled[0][0] is not None else None,
            cat(state.empty_tokens for state in states),
            cat(x for _, x in pooled if x is not None) if pooled[0][1] is not None else None,
        )
    return Conditioning(
        cat(part.tokens for part in parts),
        torch.cat([part.mask for part in parts]),
        cat(part.pooled for part in parts),
        own,
        parts[0].size,
    )


@torch.no_grad()
def sample_latents(
    predict: Predict, scheduler: SchedulerMixin, noise: Tensor, steps: int, on_step: OnStep | None = None
) -> Tensor:
    """Scaled latents from Gaussian noise (B C h w) by `steps` of the scheduler's solver; deterministic."""
    scheduler.set_timesteps(steps, device=noise.device)
    x_t = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for number, timestep in enumerate(scheduler.timesteps):
        inputs = scheduler.scale_model_input(x_t, timestep) if hasattr(scheduler, "scale_model_input") else x_t
        x_t = scheduler.step(predict(inputs, timestep), timestep, x_t, return_dict=False)[0]
        if on_step is not None:
            x_t = on_step(number, timestep, x_t)
    return x_t
