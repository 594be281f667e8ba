"""Text-image retrieval in the shared embedding space: recall at k, and a plot of the principal plane.

    texts N D, images N D (row i of both one sample) -> recall@1/5/10 both ways, similarity gap
                                                     -> principal plane, a line between the two of a pair

Letters: N pairs, D width of the shared space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

RECALLS_AT = (1, 5, 10)
BLOCK_ROWS = 1024  # of the similarity matrix in memory at once: 50,000 pairs take 200 MB
MAX_PLOTTED_PAIRS = 300  # with a line between them; more hide each other


@dataclass(frozen=True)
class RetrievalScores:
    """Retrieval among `pairs` texts and as many images.

    Recalls are shares (0..1) of the queries with a match among the first 1, 5, 10. Mean similarities are cosines of
    matching and of other pairs; None if all pairs match.
    """

    pairs: int
    text_to_image: dict[int, float]
    image_to_text: dict[int, float]
    matched_similarity: float
    other_similarity: float | None

    @property
    def similarity_gap(self) -> float | None:
        """Mean cosine of matching pairs minus that of the others; 0 in a space that does not separate them."""
        return None if self.other_similarity is None else self.matched_similarity - self.other_similarity

    def metrics(self) -> dict[str, float]:
        """All figures under flat names, for a logger."""
        found = {
            **{f"text_to_image_recall_at_{k}": value for k, value in self.text_to_image.items()},
            **{f"image_to_text_recall_at_{k}": value for k, value in self.image_to_text.items()},
            "matched_similarity": self.matched_similarity,
        }
        if self.similarity_gap is not None:
            found["similarity_gap"] = self.similarity_gap
        return found


@torch.no_grad()
def score_retrieval(
    texts: Tensor, images: Tensor, ids: Tensor | None = None, recalls_at: Sequence[int] = RECALLS_AT
) -> RetrievalScores:
    """Scores embeddings N D of texts and of their images, N at least 1, by cosine similarity.

    `ids` (N, equal for equal captions): each image of an equal caption is a match. A query finds its match at rank r if
    r - 1 other candidates are at least as similar: ties count against it, so that embeddings that are all alike score
    nothing.
    """
    assert len(texts) == len(images) > 0
    texts, images = F.normalize(texts.float(), dim=-1), F.normalize(images.float(), dim=-1)
    ids = torch.arange(len(texts)) if ids is None else ids
    ids = ids.to(texts.device)
    text_ranks, matched, other, matches = _ranks(texts, images, ids)
    image_ranks, *_ = _ranks(images, texts, ids)
    others = len(texts) ** 2 - matches
    return RetrievalScores(
        len(texts),
        {k: (text_ranks <= k).double().mean().item() for k in recalls_at},
        {k: (image_ranks <= k).double().mean().item() for k in recalls_at},
        matched / matches,
        other / others if others else None,
    )


def _ranks(queries: Tensor, candidates: Tensor, ids: Tensor) -> tuple[Tensor, float, float, int]:
    """The rank (N) of each query's best match; sums of the similarities of matches and of others; number of matches."""
    ranks, matched, other, matches = [], 0.0, 0.0, 0
    for start in range(0, len(queries), BLOCK_ROWS):
        similarities = queries[start : start + BLOCK_ROWS] @ candidates.T  # R N
        match = ids[start : start + BLOCK_ROWS, None] == ids
        best = similarities.masked_fill(~match, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append(1 + ((similarities >= best) & ~match).sum(dim=1))
        of_matches = (similarities * match).sum(dtype=torch.float64).item()
        matched += of_matches
        other += similarities.sum(dtype=torch.float64).item() - of_matches
        matches += int(match.sum())
    return torch.cat(ranks), matched, other, matches


@dataclass(frozen=True)
class Plane:
    """Embeddings in their principal plane: texts N 2, images N 2, and each axis's share of the variance."""

    texts: Tensor
    images: Tensor
    shares: tuple[float, float]


@torch.no_grad()
def principal_plane(texts: Tensor, images: Tensor) -> Plane:
    """PCA of the unit vectors of both together (N D each, N at least 1), which shows a gap between the two.

    The largest weight of each axis is positive: the same embeddings always give the same plot.
    """
    both = F.normalize(torch.cat([texts, images]).double().cpu(), dim=-1)
    centred = both - both.mean(dim=0)
    _, strengths, axes = torch.linalg.svd(centred, full_matrices=False)
    axes = F.pad(axes, (0, 0, 0, max(0, 2 - len(axes))))[:2]  # a one-dimensional space has one axis
    axes = axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()
    variances = F.pad(strengths.square(), (0, 2))
    shares = (variances[:2] / variances.sum().clamp_min(1e-12)).tolist()
    points = centred @ axes.T
    return Plane(points[: len(texts)], points[len(texts) :], (shares[0], shares[1]))


def plot_shared_space(texts: Tensor, images: Tensor, path: Path, title: str = "") -> None:
    """Plots texts and images (N D each) in their principal plane, the first pairs joined by lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.collections import LineCollection

    plane = principal_plane(texts, images)
    text_points, image_points = plane.texts.numpy(), plane.images.numpy()
    figure, axis = plt.subplots(figsize=(6.4, 6.0))
    segments = [tuple(pair) for pair in zip(text_points, image_points, strict=True)][:MAX_PLOTTED_PAIRS]
    axis.add_collection(LineCollection(segments, colors="#999999", linewidths=0.5, zorder=1))
    axis.scatter(*text_points.T, s=14, color="#4363d8", label="texts", zorder=2)
    axis.scatter(*image_points.T, s=14, color="#f58231", marker="^", label="images", zorder=2)
    axis.set(
        title=title,
        xlabel=f"first axis ({plane.shares[0]:.0%} of the variance)",
        ylabel=f"second axis ({plane.shares[1]:.0%})",
    )
    axis.set_aspect("equal", adjustable="datalim")
    axis.legend()
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
