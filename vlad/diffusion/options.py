"""Noise options: prediction type, noise schedule, timestep distribution, min-SNR loss weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vlad.utils.errors import UserError


@dataclass(frozen=True)
class NoiseOptions:
    """A stage's forward (noising) process, what its UNet predicts, and how the loss is weighted."""

    # What the UNet predicts: the noise (the paper), v, x_0 (`sample`), or the velocity of rectified flow.
    prediction: Literal["epsilon", "v_prediction", "sample", "flow"] = "epsilon"
    # Noise schedule; squaredcos_cap_v2 is the cosine schedule, scaled_linear Stable Diffusion's. Not for flow.
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    # Noise levels of training.
    train_timesteps: int = 1000
    # Start of the schedule, which squaredcos_cap_v2 does not use. Stable Diffusion's is 0.00085.
    beta_start: float = 0.0001
    # End of the schedule. Stable Diffusion's is 0.012.
    beta_end: float = 0.02
    # Rescale the schedule so that the last timestep is pure noise (Lin et al. 2023, arXiv 2305.08891).
    zero_terminal_snr: bool = False
    # `high`: t = 1 - u^2 with u uniform, more of the noisy timesteps, which decide the composition.
    timestep_bias: Literal["uniform", "high"] = "uniform"
    # min-SNR (Hang et al. 2023, arXiv 2303.09556): weights min(SNR, gamma) of the x_0 error. None: no weights.
    min_snr_gamma: float | None = None
    # Offset noise: a constant of this strength added to each channel of an image's noise, so that the model learns
    # overall brightness, which zero-mean noise hides (Guttenberg 2023; 0.05 to 0.1 is usual).
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.train_timesteps < 2:
            raise UserError(f"noise: train_timesteps must be at least 2, not {self.train_timesteps}.")
        if not 0 < self.beta_start < self.beta_end < 1:
            raise UserError(
                f"noise: beta_start ({self.beta_start}) and beta_end ({self.beta_end}) must satisfy 0 < beta_start <"
                " beta_end < 1."
            )
        if self.min_snr_gamma is not None and self.min_snr_gamma <= 0:
            raise UserError(f"noise: min_snr_gamma must be positive, or null for no weights, not {self.min_snr_gamma}.")
        if not 0 <= self.offset <= 1:
            raise UserError(f"noise: offset must be from 0 to 1, not {self.offset}.")
        if self.prediction == "flow" and (self.zero_terminal_snr or self.min_snr_gamma is not None):
            raise UserError("noise: prediction: flow takes neither zero_terminal_snr nor min_snr_gamma; remove them.")
        if self.prediction == "epsilon" and self.zero_terminal_snr:
            raise UserError(
                "noise: zero_terminal_snr needs prediction: v_prediction or sample; at zero SNR epsilon does not"
                " determine x_0."
            )
