"""Retrieval scores against a plain sort, and the plot of the shared space."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vlad.metrics import retrieval
from vlad.metrics.retrieval import plot_shared_space, principal_plane, score_retrieval


def embeddings(pairs: int = 40, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    meaning = torch.randn(pairs, 8, generator=generator)
    texts, images = (meaning + noise * torch.randn(pairs, 8, generator=generator) for _ in range(2))
    return 3 * texts, images


def recall(similarities: Tensor, ids: list[int], k: int) -> float:
    found = 0
    for row, wanted in zip(similarities.tolist(), ids, strict=True):
        best = sorted(range(len(row)), key=lambda j: -row[j])[:k]
        found += any(ids[j] == wanted for j in best)
    return found / len(ids)


@pytest.mark.parametrize("block_rows", [1024, 7])
@pytest.mark.parametrize("equal_captions", [False, True])
def test_scores_are_those_of_a_sort(equal_captions: bool, block_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "BLOCK_ROWS", block_rows)
    texts, images = embeddings()
    ids = [number // 2 if equal_captions else number for number in range(40)]
    cosines = F.normalize(texts, dim=1) @ F.normalize(images, dim=1).T
    match = torch.tensor([[a == b for b in ids] for a in ids])

    scores = score_retrieval(texts, images, torch.tensor(ids) if equal_captions else None)

    assert scores.pairs == 40
    assert scores.text_to_image == pytest.approx({k: recall(cosines, ids, k) for k in (1, 5, 10)})
    assert scores.image_to_text == pytest.approx({k: recall(cosines.T, ids, k) for k in (1, 5, 10)})
    assert 0 < scores.text_to_image[1] < scores.text_to_image[5] < scores.text_to_image[10] < 1
    assert scores.text_to_image != scores.image_to_text
    assert scores.matched_similarity == pytest.approx(cosines[match].mean().item(), abs=1e-6)
    assert scores.similarity_gap == pytest.approx((cosines[match].mean() - cosines[~match].mean()).item(), abs=1e-6)


def test_perfect_embeddings_score_everything_and_unrelated_ones_chance() -> None:
    texts, images = embeddings(256, noise=0.0)
    assert set(score_retrieval(texts, images).text_to_image.values()) == {1.0}
    shuffled = score_retrieval(texts, images[torch.randperm(256, generator=torch.Generator().manual_seed(1))])
    assert shuffled.text_to_image[1] < 0.03
    assert shuffled.similarity_gap == pytest.approx(0, abs=0.05)


def test_equal_embeddings_score_nothing() -> None:
    scores = score_retrieval(torch.ones(40, 8), torch.ones(40, 8))
    assert set(scores.text_to_image.values()) == set(scores.image_to_text.values()) == {0.0}
    assert scores.similarity_gap == pytest.approx(0)


def test_a_single_pair_has_no_other_similarity() -> None:
    scores = score_retrieval(*embeddings(1, noise=0.0))
    assert scores.text_to_image == {1: 1.0, 5: 1.0, 10: 1.0}
    assert scores.other_similarity is None
    assert scores.similarity_gap is None
    assert "similarity_gap" not in scores.metrics()


def test_metrics_are_flat_numbers_of_both_directions() -> None:
    scores = score_retrieval(*embeddings(), recalls_at=(1, 3))
    assert scores.metrics() == {
        "text_to_image_recall_at_1": scores.text_to_image[1],
        "text_to_image_recall_at_3": scores.text_to_image[3],
        "image_to_text_recall_at_1": scores.image_to_text[1],
        "image_to_text_recall_at_3": scores.image_to_text[3],
        "matched_similarity": scores.matched_similarity,
        "similarity_gap": scores.similarity_gap,
    }


def test_the_plane_has_the_directions_of_largest_variance() -> None:
    texts, images = embeddings()
    both = F.normalize(torch.cat([texts, images]).double(), dim=1)
    values, vectors = np.linalg.eigh(np.cov(both.numpy().T))

    plane = principal_plane(texts, images)

    points = torch.cat([plane.texts, plane.images]).numpy()
    np.testing.assert_allclose(points.var(axis=0, ddof=1), values[[-1, -2]], rtol=1e-6)
    np.testing.assert_allclose(plane.shares, values[[-1, -2]] / values.sum(), rtol=1e-6)
    projected = (both - both.mean(dim=0)).numpy() @ vectors[:, [-1, -2]]
    np.testing.assert_allclose(np.abs(points), np.abs(projected), atol=1e-9)
    torch.testing.assert_close(principal_plane(2 * texts, images).texts, plane.texts)


@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("width", [1, 3])
def test_few_pairs_of_few_dimensions_have_a_plane_too(pairs: int, width: int) -> None:
    plane = principal_plane(torch.randn(pairs, width), torch.randn(pairs, width))
    assert plane.texts.shape == plane.images.shape == (pairs, 2)
    assert plane.texts.isfinite().all()


def test_the_plot_shows_both_sides_and_the_lines_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, images = embeddings(60)

    def draw(lines: int) -> np.ndarray:
        monkeypatch.setattr(retrieval, "MAX_PLOTTED_PAIRS", lines)
        plot_shared_space(texts, images, tmp_path / "space.png", "step 100")
        return np.asarray(Image.open(tmp_path / "space.png").convert("RGB")).astype(int)

    without, some, joined = draw(0), draw(20), draw(300)

    for colour in ((0x43, 0x63, 0xD8), (0xF5, 0x82, 0x31)):  # texts, images
        assert (np.abs(without - colour).max(axis=2) < 12).sum() > 60 * 9
    changed, changed_by_all = ((np.abs(pixels - without).max(axis=2) > 30).sum() for pixels in (some, joined))
    assert 1000 < changed < changed_by_all
