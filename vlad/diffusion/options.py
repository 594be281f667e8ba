"""Options of the noise process: prediction type, schedule, loss weighting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vlad.utils.errors import UserError


@dataclass(frozen=True)
class NoiseOptions:
    """A stage's forward process and what its UNet predicts."""

    prediction: Literal["epsilon", "v_prediction", "sample", "flow"] = "epsilon"
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    train_timesteps: int = 1000
    # Ends of the schedule, which squaredcos_cap_v2 does without. Stable Diffusion's are 0.00085 and 0.012.
    beta_start: float = 0.0001
    beta_end: float = 0.02
    zero_terminal_snr: bool = False
    # `high`: t = 1 - u^2 with u uniform, more of the noisy steps where the composition is decided.
    timestep_bias: Literal["uniform", "high"] = "uniform"
    # Hang et al. 2023: weights min(SNR, gamma) of the x_0 error. None: the plain squared error.
    min_snr_gamma: float | None = None
    # Noise of this strength that is the same over a whole channel of an image: it then learns to be darker or lighter
    # all over, which zero-mean noise hides (Guttenberg 2023; 0.05 to 0.1 is usual).
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.train_timesteps < 2:
            raise UserError(f"noise: train_timesteps must be at least 2, not {self.train_timesteps}.")
        if not 0 < self.beta_start < self.beta_end < 1:
            raise UserError(
                f"noise: beta_start ({self.beta_start}) must be above 0 and below beta_end ({self.beta_end}), and that"
                " below 1."
            )
        if self.min_snr_gamma is not None and self.min_snr_gamma <= 0:
            raise UserError(
                f"noise: min_snr_gamma must be positive, or null to leave it out, not {self.min_snr_gamma}."
            )
        if not 0 <= self.offset <= 1:
            raise UserError(f"noise: offset must be from 0 to 1, not {self.offset}.")
        if self.prediction == "flow" and (self.zero_terminal_snr or self.min_snr_gamma is not None):
            raise UserError("noise: prediction: flow takes neither zero_terminal_snr nor min_snr_gamma; remove them.")
        if self.prediction == "epsilon" and self.zero_terminal_snr:
            raise UserError("noise: at zero SNR epsilon says nothing of x_0; use prediction: v_prediction or sample.")
