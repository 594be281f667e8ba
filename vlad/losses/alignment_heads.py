"""What the losses of the text side learn beside it: projections, temperatures, small heads. Sampling needs none."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vlad.losses.contrastive import AlignmentHead
from vlad.losses.extra.image_text_matching import MatchingHead
from vlad.losses.extra.region_phrase_contrast import RegionHead
from vlad.models.text_encoder.lvlm import pooled_features
from vlad.types import Conditioning


def sincos_positions(points: int, side: int, width: int) -> Tensor:
    """Sines and cosines of the middles of points x points cells, row by row: (points points) D (He et al., CVPR 2022).

    `side`: of the grid that is to be told apart by them; their waves are as long as two of its cells at least, and as
    two images at most. Equal places have equal codes whatever the number of points.
    """
    quarter = width // 4
    frequencies = math.pi * side / torch.logspace(0, 1, quarter, base=max(2, side))
    places = (torch.arange(points) + 0.5) / points
    angles = places[:, None] * frequencies  # points D/4
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # points D/2
    rows, columns = waves[:, None].expand(-1, points, -1), waves[None].expand(points, -1, -1)
    codes = torch.cat([rows, columns], dim=2).flatten(0, 1)
    return nn.functional.pad(codes, (0, width - codes.shape[1]))


class AttentionPool(nn.Module):
    """v of an image's features by learned queries (CLIP's attention pooling), each at a place of its own.

    The mean over a tower whose patches only know each other's distance (Qwen's) cannot say where anything stands. Here
    side x side queries look where they stand until they have learned better, and what each one reads has weights of its
    own in v, as the cells of a spatial pyramid have (He et al., ECCV 2014).
    """

    def __init__(self, width: int, side: int = 4) -> None:
        super().__init__()
        self.side = side
        self.queries = nn.Embedding(side**2, width)
        self.norm = nn.LayerNorm(width)
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key = nn.Linear(width, width, bias=False)
        self.to_value = nn.Linear(width, width // 2)
        self.to_v = nn.Sequential(nn.Linear(side**2 * (width // 2), width), nn.LayerNorm(width))
        nn.init.normal_(self.queries.weight, std=0.5)
        for layer in (self.to_query, self.to_key):
            nn.init.eye_(layer.weight)  # places meet equal places

    def forward(self, features: Tensor) -> Tensor:
        """B T D -> B D. Features that are no square grid get no places."""
        features = self.norm(features.float())
        located, queries = features, self.queries.weight  # B T D, Q D
        side = math.isqrt(features.shape[1])
        if side**2 == features.shape[1]:
            located = features + sincos_positions(side, side, features.shape[2]).to(features)
            queries = queries + sincos_positions(self.side, side, features.shape[2]).to(features)
        read = nn.functional.scaled_dot_product_attention(
            self.to_query(queries).expand(len(features), -1, -1), self.to_key(located), self.to_value(located)
        )  # B Q D/2
        return features.mean(dim=1) + self.to_v(read.flatten(1))


class TokenPool(nn.Module):
    """t of a prompt's pooled vector and of all its conditioning tokens, each through the same small layer, summed.

    In the pooled vector of a new CCM a letter is one of some fifteen tokens that attention averages, and drowns in the
    phrases; and L_align of the pooled vector alone leaves the tokens that the UNets read unaligned.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_token = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, t: Conditioning) -> Tensor:
        """Tokens B K D with their mask, pooled B D -> B D."""
        summed = (self.of_token(t.tokens.float()) * t.mask[..., None]).sum(dim=1)
        return t.pooled.float() + self.norm(summed)


class AlignmentHeads(nn.Module):
    """The head of L_align (Eq. 3), and those of the weighted extras that a run has."""

    def __init__(
        self,
        contrast: AlignmentHead,
        regions: RegionHead | None = None,
        matching: MatchingHead | None = None,
        pool: AttentionPool | None = None,
        text_pool: TokenPool | None = None,
    ) -> None:
        super().__init__()
        self.contrast = contrast
        self.pool = pool
        self.text_pool = text_pool
        self.regions = regions
        self.matching = matching

    def t(self, conditioning: Conditioning) -> Tensor:
        """t as L_align compares it, B D, of a batch of composed prompts."""
        return conditioning.pooled if self.text_pool is None else self.text_pool(conditioning)

    def v(self, features: Tensor) -> Tensor:
        """v, B D, of image features B T D (or B D of a tower that pools by itself)."""
        return pooled_features(features) if self.pool is None or features.ndim == 2 else self.pool(features)

    def load_compatible(self, stored: dict[str, Tensor]) -> None:
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
