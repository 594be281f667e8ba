"""All fidelity scores of an evaluation: CLIPScore, FID and KID where their weights and references are present."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlad.eval.benchmark.evaluator import FidelityScore
from vlad.eval.benchmark.image_sets import BenchmarkImage
from vlad.eval.fidelity.clip_score import CLIP_PROTOCOLS, find_clip, mean_clip_score
from vlad.eval.fidelity.distances import find_encoders, score_distances
from vlad.eval.fidelity.reference_images import NO_REFERENCES, References
from vlad.utils.errors import UserError


def check_encoders(protocols: Sequence[str], weights: Path, folders: Sequence[Path]) -> None:
    """Loads what `score_fidelity` will need, and frees it.

    Raises UserError for weights that cannot be used: better before images are generated than after.
    """
    find_encoders(weights, folders)
    for name in protocols:
        if name in CLIP_PROTOCOLS:
            find_clip(weights, CLIP_PROTOCOLS[name])


def score_fidelity(
    images: Sequence[BenchmarkImage],
    protocols: Sequence[str],
    weights: Path,
    folders: Sequence[Path],
    references: References = References(),  # noqa: B008 - frozen
) -> tuple[list[FidelityScore], dict[str, str]]:
    """All scores whose weights and references are present, and why the others are left out."""
    scores: list[FidelityScore] = []
    left_out: dict[str, str] = {}
    for name, clip in CLIP_PROTOCOLS.items():
        if name not in protocols or not images:
            continue
        encoder, reason = find_clip(weights, clip)
        if encoder is None:
            left_out[f"clip score, {name}"] = reason
        else:
            scores.append(mean_clip_score(encoder, clip, images))
    distances, without = _distance_scores(images, weights, folders, references)
    return scores + distances, left_out | without


def _distance_scores(
    images: Sequence[BenchmarkImage], weights: Path, folders: Sequence[Path], references: References
) -> tuple[list[FidelityScore], dict[str, str]]:
    """FID and KID by every encoder, and why they are left out."""
    # A round: one image of each prompt that has references, all of one sample number.
    rounds: dict[int, list[Path]] = {}
    for image in images:
        if image.path is not None and image.prompt.key in references.prompts:
            rounds.setdefault(image.sample, []).append(image.path)
    missing = [path for path in references.paths if not path.is_file()]
    if not references.paths:
        return [], {"fid": NO_REFERENCES}
    if missing:
        count = f"{len(missing)} of {len(references.paths)} reference images"
        return [], {"fid": f"FID and KID are left out: {count} are missing, {missing[0]} first."}
    if not rounds or min(len(references.paths), *map(len, rounds.values())) < 2:
        return [], {"fid": "FID and KID need at least two images a sample number, and two references."}
    scores: list[FidelityScore] = []
    encoders, left_out = find_encoders(weights, folders)
    for encoder in encoders:
        try:
            found = score_distances(encoder, references.paths, list(rounds.values()))
        except UserError as error:  # an unreadable reference
            return scores, {"fid": str(error)}
        scores.append(FidelityScore("FID", str(found), found.fid))
        scores.append(FidelityScore("KID", f"{found}; deviation over subsets {found.kid_deviation:.5f}", found.kid))
    return scores, left_out
