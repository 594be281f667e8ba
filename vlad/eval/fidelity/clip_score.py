"""CLIPScore (Hessel et al., EMNLP 2021), as the benchmarks compute it: scale * max(cosine, 0).

prompts, images --> CLIP --> cosine of both embeddings
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlad.eval.benchmark.evaluator import FidelityScore
from vlad.eval.benchmark.image_sets import BenchmarkImage
from vlad.eval.fidelity.distances import BATCH, batches
from vlad.eval.image_files import load_image
from vlad.eval.intervals import bootstrap_intervals
from vlad.eval.protocols.protocol import Sums, no_derived_metrics
from vlad.models.metric_encoders import CLIPEncoder


@dataclass(frozen=True)
class ClipProtocol:
    """How a benchmark computes CLIPScore: its CLIP, the text in front of every prompt, and the factor."""

    model: str
    prefix: str
    scale: float

    def __str__(self) -> str:
        return f"{self.model}, prefix {self.prefix.strip()!r}, scale {self.scale:g}"


# Scores of different protocols do not compare.
CLIP_PROTOCOLS = {
    "mario": ClipProtocol("clip-vit-base-patch32", "A photo depicts ", 1.0),
    "anytext": ClipProtocol("clip-vit-base-patch32", "", 2.5),
    "cvtg": ClipProtocol("clip-vit-large-patch14", "A photo depicts ", 2.5),
}


def find_clip(weights: Path, protocol: ClipProtocol) -> tuple[CLIPEncoder | None, str]:
    """The protocol's CLIP, or None and what to put where."""
    folder = weights / protocol.model
    if (folder / "config.json").is_file():
        return CLIPEncoder(folder), ""
    return None, (
        f"CLIPScore ({protocol}) needs its CLIP: put the folder of openai/{protocol.model} (hf download) at {folder}."
    )


def clip_scores(encoder: CLIPEncoder, protocol: ClipProtocol, pairs: Iterable[tuple[str, Path]]) -> Iterator[float]:
    """CLIPScore (Hessel et al. 2021) of every prompt and image: scale * max(cosine, 0)."""
    for batch in batches(pairs, BATCH):
        texts = [protocol.prefix + prompt for prompt, _ in batch]
        cosines = encoder.similarity(texts, [load_image(path) for _, path in batch])
        yield from (protocol.scale * cosines.clamp_min(0)).tolist()


def mean_clip_score(encoder: CLIPEncoder, clip: ClipProtocol, images: Sequence[BenchmarkImage]) -> FidelityScore:
    """The mean over images, with its interval over prompts."""
    pairs = [(image.prompt.text, path) for image in images if (path := image.path) is not None]
    sums: Sums = {}
    for image, value in zip(images, clip_scores(encoder, clip, pairs), strict=True):
        total, count = sums.get(image.prompt.key, (0.0, 0.0))
        sums[image.prompt.key] = (total + value, count + 1)
    mean = sum(total for total, _ in sums.values()) / len(pairs)
    interval = bootstrap_intervals([{"clip_score": pair} for pair in sums.values()], no_derived_metrics)["clip_score"]
    return FidelityScore("CLIPScore", f"{clip}, {len(pairs)} images", mean, *interval)
