"""Heads of the text-side losses: pooling of t and v, projections, temperatures. Sampling needs none of them."""

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
    """2D sine-cosine position embeddings of points x points cell centres, row by row: (points points) D (He et al.,
    CVPR 2022).

    `side` of the grid whose cells they have to distinguish: wavelengths are between two of its cells and two images.
    Equal positions have equal embeddings whatever the number of points.
    """
    quarter = width // 4
    frequencies = math.pi * side / torch.logspace(0, 1, quarter, base=max(2, side))
    centres = (torch.arange(points) + 0.5) / points
    angles = centres[:, None] * frequencies  # points D/4
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # points D/2
    rows, columns = waves[:, None].expand(-1, points, -1), waves[None].expand(points, -1, -1)
    embeddings = torch.cat([rows, columns], dim=2).flatten(0, 1)
    return nn.functional.pad(embeddings, (0, width - embeddings.shape[1]))


class AttentionPool(nn.Module):
    """Pools an image's features to v with learned queries (CLIP's attention pooling), each at its own position.

    The mean over a vision tower with relative positions (Qwen's) loses where things are. Here side x side queries start
    by attending to their own positions, and each has its own weights in v, as the cells of a spatial pyramid have (He
    et al., ECCV 2014).
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
            nn.init.eye_(layer.weight)  # at the start a query attends to its own position

    def forward(self, features: Tensor) -> Tensor:
        """B T D -> B D. Features that form no square grid get no positions."""
        features = self.norm(features.float())
        located, queries = features, self.queries.weight  # B T D, Q D
        side = math.isqrt(features.shape[1])
        if side**2 == features.shape[1]:
            located = features + sincos_positions(side, side, features.shape[2]).to(features)
            queries = queries + sincos_positions(self.side, side, features.shape[2]).to(features)
        pooled = nn.functional.scaled_dot_product_attention(
            self.to_query(queries).expand(len(features), -1, -1), self.to_key(located), self.to_value(located)
        )  # B Q D/2
        return features.mean(dim=1) + self.to_v(pooled.flatten(1))


class TokenPool(nn.Module):
    """Pools a prompt to t: its pooled vector plus the sum of its conditioning tokens, each through the same MLP.

    In the pooled vector of a new CCM a letter is one of some fifteen tokens that attention averages, and the phrases
    drown it; and L_align of the pooled vector alone leaves the tokens that the UNets attend to unaligned.
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
    """The head of L_align (Eq. 3), and those of the optional losses that a run has."""

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
        """v, B D, of image features B T D (or B D from a vision tower that pools by itself)."""
        return pooled_features(features) if self.pool is None or features.ndim == 2 else self.pool(features)

    def load_compatible(self, state: dict[str, Tensor]) -> None:
        """Loads those tensors of another run's heads that exist here with the same shape.

        Kinds of L_align differ in their bias, encoders in the width of v, runs in their optional losses.
        """
        own = self.state_dict()
        compatible = {name: x for name, x in state.items() if name in own and x.shape == own[name].shape}
        self.load_state_dict({**own, **compatible})

    def learned_scalars(self) -> dict[str, Tensor]:
        """For the logs: temperatures and bias; no gradients."""
        found = self.contrast.learned_scalars()
        if self.regions is not None:
            found["region_temperature"] = self.regions.temperature.detach()
        return found
