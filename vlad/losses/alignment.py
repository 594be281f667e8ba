"""What the losses of the text side learn beside it: projections, temperatures, small heads. Sampling needs none."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vlad.losses.contrastive import AlignmentHead
from vlad.losses.matching import MatchingHead
from vlad.losses.regions import RegionHead
from vlad.text.lvlm import pooled_features


def place_codes(side: int, width: int) -> Tensor:
    """Sines and cosines of the places in a side x side grid, row by row: (side side) D (He et al., CVPR 2022)."""
    quarter = width // 4
    frequencies = math.pi * side / torch.logspace(0, 1, quarter, base=max(2, side))  # from a cell to the whole picture
    places = (torch.arange(side) + 0.5) / side
    angles = places[:, None] * frequencies  # side D/4
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # side D/2
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    codes = torch.cat([rows, columns], dim=2).flatten(0, 1)
    return nn.functional.pad(codes, (0, width - codes.shape[1]))


class AttentionPool(nn.Module):
    """v of a picture's features by learned queries that know each patch's place (CLIP's attention pooling, for ViTs).

    The mean over a tower whose patches only know each other's distance (Qwen's) cannot say where anything stands.
    """

    def __init__(self, width: int, heads: int = 4, queries: int = 4) -> None:
        super().__init__()
        self.queries = nn.Embedding(queries, width)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.to_v = nn.Linear(queries * width, width)

    def forward(self, features: Tensor) -> Tensor:
        """B T D -> B D. Features that are no square grid get no places."""
        features = self.norm(features.float())
        side = math.isqrt(features.shape[1])
        if side**2 == features.shape[1]:
            features = features + place_codes(side, features.shape[2]).to(features)
        queries = self.queries.weight.expand(len(features), -1, -1)
        read, _ = self.attention(queries, features, features, need_weights=False)  # B Q D
        return features.mean(dim=1) + self.to_v(read.flatten(1))


class AlignmentHeads(nn.Module):
    """The head of L_align (Eq. 3), and those of the weighted extras that a run has."""

    def __init__(
        self,
        contrast: AlignmentHead,
        regions: RegionHead | None = None,
        matching: MatchingHead | None = None,
        pool: AttentionPool | None = None,
    ) -> None:
        super().__init__()
        self.contrast = contrast
        self.pool = pool
        self.regions = regions
        self.matching = matching

    def v(self, features: Tensor) -> Tensor:
        """v, B D, of image features B T D (or B D of a tower that pools by itself)."""
        return pooled_features(features) if self.pool is None or features.ndim == 2 else self.pool(features)

    def load_fitting(self, stored: dict[str, Tensor]) -> None:
        """Takes over what fits of another run's heads.

        Kinds of L_align differ in their bias, encoders in the width of v, runs in their extras.
        """
        wanted = self.state_dict()
        fitting = {name: x for name, x in stored.items() if name in wanted and x.shape == wanted[name].shape}
        self.load_state_dict({**wanted, **fitting})

    def report(self) -> dict[str, float]:
        """What has been learned in single numbers, for the logs."""
        numbers = self.contrast.report()
        if self.regions is not None:
            numbers["region_temperature"] = self.regions.temperature.item()
        return numbers
