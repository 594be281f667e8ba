"""Mean loss by noise level: `noise_0` (hardly any noise) to `noise_9` (nearly nothing else)."""

from __future__ import annotations

import torch
from torch import Tensor

NOISE_BINS = 10


class NoiseLevels:
    """Sums up losses by tenths of the noise levels, on the device, between two logged steps."""

    def __init__(self, train_timesteps: int) -> None:
        self.train_timesteps = train_timesteps
        self.sums: Tensor | None = None

    def add(self, losses: Tensor, timesteps: Tensor) -> None:
        """Takes the losses (B) of rows at their timesteps (B); nothing waits for the device."""
        if self.sums is None:
            self.sums = torch.zeros(2, NOISE_BINS, device=losses.device)  # sums, counts
        bins = timesteps * NOISE_BINS // self.train_timesteps
        self.sums.index_add_(1, bins, torch.stack([losses.float(), torch.ones_like(losses, dtype=torch.float32)]))

    def take(self) -> dict[str, float]:
        """The means of the levels that came up since the last call."""
        if self.sums is None:
            return {}
        sums, counts = self.sums.tolist()
        self.sums = None
        return {f"noise_{i}": sums[i] / counts[i] for i in range(NOISE_BINS) if counts[i]}
