"""L_align: the composed text t against the image embedding v of its picture (Eq. 3).

Letters: B batch (of all ranks where gathered), D width of the shared space.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlad.distributed import gather_with_gradient


def contrastive_loss(t: Tensor, v: Tensor, temperature: Tensor | float) -> Tensor:
    """Eq. 3: L_align = -mean_i log( exp(cos(t_i, v_i) / tau) / sum_j exp(cos(t_i, v_j) / tau) ); tau = temperature.

    t, v: B D, row i of both from the same sample. One-directional, as in the paper: texts choose among pictures.
    """
    similarities = F.normalize(t, dim=-1) @ F.normalize(v, dim=-1).T / temperature  # B B
    return F.cross_entropy(similarities, torch.arange(len(t), device=t.device))


class AlignmentHead(nn.Module):
    """Projects t and v into the shared space and holds the learned temperature, clamped to [0.01, 1]."""

    def __init__(self, text_width: int, image_width: int, width: int = 128, temperature: float = 0.07) -> None:
        super().__init__()
        self.from_text = nn.Linear(text_width, width, bias=False)
        self.from_image = nn.Linear(image_width, width, bias=False)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    @property
    def temperature(self) -> Tensor:
        """tau, clamped: a runaway temperature is the usual way for a contrastive loss to diverge."""
        return self.log_temperature.clamp(math.log(0.01), 0.0).exp()

    def forward(self, t: Tensor, v: Tensor) -> Tensor:
        """L_align over the batch of all ranks, of pooled text states B D and image embeddings B D."""
        texts = gather_with_gradient(self.from_text(t.float()))
        images = gather_with_gradient(self.from_image(v.float()))
        return contrastive_loss(texts, images, self.temperature)
