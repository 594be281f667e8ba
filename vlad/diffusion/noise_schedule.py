"""Noise schedules, prediction targets and min-SNR loss weights, through diffusers' schedulers (Eq. 4, 9).

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon        diffusion (Eq. 4)
    x_t = (1 - s) x_0 + s epsilon, s = t / T                           rectified flow

The paper predicts epsilon; x_0 ("sample"), v ("v_prediction") and the flow's velocity are options.
Letters: B batch, C latent channels, h w cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias, get_args, get_type_hints

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from vlad.diffusion.options import NoiseOptions
from vlad.utils.errors import UserError

Scheduler: TypeAlias = DDIMScheduler | FlowMatchEulerDiscreteScheduler


def build_scheduler(options: NoiseOptions) -> Scheduler:
    """The diffusers scheduler of this process, for training; solvers.py has those for sampling."""
    if options.prediction == "flow":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=options.train_timesteps)
    return DDIMScheduler(
        num_train_timesteps=options.train_timesteps,
        beta_schedule=options.beta_schedule,
        beta_start=options.beta_start,
        beta_end=options.beta_end,
        prediction_type=options.prediction,
        rescale_betas_zero_snr=options.zero_terminal_snr,
        timestep_spacing="trailing",
        clip_sample=False,
    )


def noise_fields_of(scheduler: Scheduler) -> dict[str, str | int | float | bool]:
    """The fields of NoiseOptions that a scheduler of `build_scheduler` was built from."""
    config = scheduler.config
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return {"prediction": "flow", "train_timesteps": config.num_train_timesteps}
    return {
        "prediction": config.prediction_type,
        "beta_schedule": config.beta_schedule,
        "train_timesteps": config.num_train_timesteps,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "zero_terminal_snr": config.rescale_betas_zero_snr,
    }


def draw_timesteps(options: NoiseOptions, batch: int, device: torch.device) -> Tensor:
    """Random training timesteps, B (int64), from torch's generator of the device."""
    u = torch.rand(batch, device=device)
    share = 1 - u.square() if options.timestep_bias == "high" else u
    return (share * options.train_timesteps).long().clamp(0, options.train_timesteps - 1)


def draw_noise(x_0: Tensor, offset: float = 0.0) -> Tensor:
    """epsilon B C h w: normal noise, plus offset noise: `offset` times one normal number a channel of an image."""
    # Not randn_like: the numbers must not depend on the memory format.
    noise = torch.randn(x_0.shape, device=x_0.device, dtype=x_0.dtype)
    if not offset:
        return noise
    return noise + offset * torch.randn((*x_0.shape[:2], 1, 1), device=x_0.device, dtype=x_0.dtype)


def add_noise(scheduler: Scheduler, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """x_t of Eq. 4, or of rectified flow."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        s = _flow_share(scheduler, timesteps, x_0)
        return (1 - s) * x_0 + s * noise
    return scheduler.add_noise(x_0, noise, timesteps)


def training_target(scheduler: Scheduler, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The prediction target at x_t (epsilon in Eq. 9)."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return noise - x_0
    match scheduler.config.prediction_type:
        case "epsilon":
            return noise
        case "v_prediction":
            return scheduler.get_velocity(x_0, noise, timesteps)
        case _:
            return x_0


def predicted_x_0(scheduler: Scheduler, prediction: Tensor, x_t: Tensor, timesteps: Tensor) -> Tensor:
    """x_0 computed from the prediction at x_t."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return x_t - _flow_share(scheduler, timesteps, x_t) * prediction
    alpha_bar = scheduler.alphas_cumprod.to(x_t.device)[timesteps].to(x_t.dtype)[:, None, None, None]
    match scheduler.config.prediction_type:
        case "epsilon":
            return (x_t - (1 - alpha_bar).sqrt() * prediction) / alpha_bar.sqrt()
        case "v_prediction":
            return alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * prediction
        case _:
            return prediction


def signal_shares(scheduler: Scheduler, timesteps: Tensor) -> Tensor:
    """The share of x_0 in the variance of x_t, B: alpha_bar_t, or (1 - s)^2 of rectified flow."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return (1 - timesteps / scheduler.config.num_train_timesteps).square()
    return scheduler.alphas_cumprod.to(timesteps.device)[timesteps]


def loss_weights(scheduler: Scheduler, timesteps: Tensor, min_snr_gamma: float | None) -> Tensor:
    """Weights B of the squared error: 1, or min-SNR's min(SNR, gamma) of x_0 converted to the predicted quantity."""
    if min_snr_gamma is None or isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return torch.ones(len(timesteps), device=timesteps.device)
    alpha_bar = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = alpha_bar / (1 - alpha_bar)
    weight_of_x_0 = snr.clamp(max=min_snr_gamma)
    match scheduler.config.prediction_type:
        case "epsilon":
            return (min_snr_gamma / snr).clamp(max=1.0)  # also where the SNR vanishes
        case "v_prediction":
            return weight_of_x_0 / (snr + 1)
        case _:
            return weight_of_x_0


def _flow_share(scheduler: FlowMatchEulerDiscreteScheduler, timesteps: Tensor, like: Tensor) -> Tensor:
    return (timesteps.to(like.dtype) / scheduler.config.num_train_timesteps)[:, None, None, None]


def noise_options_from(scheduler: Mapping[str, Any], defaults: NoiseOptions) -> NoiseOptions:
    """The noise options that match a pretrained model's scheduler config; the rest is taken from `defaults`.

    Raises UserError for a process that NoiseOptions cannot describe.
    """
    known = get_type_hints(NoiseOptions)
    prediction = scheduler.get("prediction_type", "epsilon")
    schedule = scheduler.get("beta_schedule", "linear")
    if prediction not in get_args(known["prediction"]) or prediction == "flow" or "beta_start" not in scheduler:
        raise UserError(
            f"stable_diffusion.path: the scheduler ({scheduler.get('_class_name')}, prediction_type {prediction})"
            " is not that of a Stable Diffusion 1, 2 or XL, which predicts epsilon, v_prediction or sample."
        )
    if schedule not in get_args(known["beta_schedule"]) or scheduler.get("trained_betas") is not None:
        what = "trained_betas" if scheduler.get("trained_betas") is not None else f"beta_schedule {schedule}"
        schedules = ", ".join(get_args(known["beta_schedule"]))
        raise UserError(f"stable_diffusion.path: the scheduler has {what}; known beta_schedules: {schedules}.")
    return replace(
        defaults,
        prediction=prediction,
        beta_schedule=schedule,
        beta_start=float(scheduler["beta_start"]),
        beta_end=float(scheduler["beta_end"]),
        train_timesteps=int(scheduler.get("num_train_timesteps", 1000)),
        zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr", False)),
    )
