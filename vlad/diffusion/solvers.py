"""Solvers (samplers): any diffusers scheduler over a plain function of x_t and the timestep, such as a guided one.

Letters: B batch, C latent channels, h w cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor

from vlad.diffusion.guidance import Predict
from vlad.diffusion.options import NoiseOptions
from vlad.utils.errors import UserError, did_you_mean

# Called after each step with its number, its timestep and x_t; the returned tensor replaces x_t.
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
    """The named solver for the process a UNet was trained with. Raises UserError for one that does not fit it."""
    if name not in SOLVERS:
        raise UserError(f"There is no solver {name!r}.{did_you_mean(name, SOLVERS)} Known: {', '.join(SOLVERS)}.")
    is_flow = process.prediction == "flow"
    if name in (_DIFFUSION_ONLY if is_flow else _FLOW_ONLY):
        fitting = [known for known in SOLVERS if known not in (_DIFFUSION_ONLY if is_flow else _FLOW_ONLY)]
        raise UserError(
            f"The solver {name} does not fit a model that predicts {process.prediction}; choose {', '.join(fitting)}."
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
    """Raises UserError when a scheduler that the user has set is of another process than the stage's UNet."""
    config = scheduler.config
    # FlowMatchEuler has no prediction_type: it is always flow.
    prediction = config.get("prediction_type", "flow")
    found = {
        "prediction": {"flow_prediction": "flow", "original_sample": "sample"}.get(prediction, prediction),
        "train_timesteps": config.num_train_timesteps,
    }
    if process.prediction != "flow":
        found["beta_schedule"] = config.get("beta_schedule")
        found["zero_terminal_snr"] = bool(config.get("rescale_betas_zero_snr", False))
        if process.beta_schedule != "squaredcos_cap_v2":
            found |= {"beta_start": config.get("beta_start"), "beta_end": config.get("beta_end")}
    spacing = config.get("timestep_spacing", "trailing")
    if process.zero_terminal_snr and spacing != "trailing":
        # Any other leaves out the last timestep, where alone the mean of an image is decided (arXiv 2305.08891).
        raise UserError(
            f"The {stage} scheduler {type(scheduler).__name__} does not fit: its timestep_spacing is {spacing!r}, and"
            " a model of zero terminal SNR needs 'trailing'; set it, or make one with build_solver."
        )
    for name, value in found.items():
        trained = getattr(process, name)
        if value != trained:
            raise UserError(
                f"The {stage} scheduler {type(scheduler).__name__} does not fit: its {name} is {value!r}, and the"
                f" {stage} UNet was trained with {trained!r}; make one with build_solver, or from_config of the"
                " scheduler that came with the model."
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
