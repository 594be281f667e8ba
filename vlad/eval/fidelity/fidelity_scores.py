"""FID, KID and CLIPScore, with weights that lie on this machine.

    images --> encoder --> features --> torchmetrics: FID (Frechet distance), KID (polynomial kernel)
    prompts, images --> CLIP --> scale * max(cosine, 0)

Nothing is downloaded. A score whose weights are missing is left out, with the sentence that says what goes where.
As MARIO-Eval has it, FID takes one image of every prompt, once a sample number, and is the mean of these.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlad.eval.benchmark.evaluator import FidelityScore
from vlad.eval.benchmark.image_sets import BenchmarkImage
from vlad.eval.fidelity.reference_images import NONE_NAMED, References
from vlad.eval.image_files import UNREADABLE, load_image
from vlad.eval.intervals import bootstrap_intervals
from vlad.eval.protocols.protocol import no_derived_metrics
from vlad.models.metric_encoders import CLIPEncoder, VisionEncoder
from vlad.utils.errors import UserError
from vlad.utils.hardware import best_device

INCEPTION = "inception-2015-12-05.pt"
BATCH = 16
MOST_KID_FEATURES = 10_000  # KID keeps its features: more would fill the memory, and change its figure little
KID_SUBSET = 1000
Item = TypeVar("Item")


@dataclass(frozen=True)
class ClipProtocol:
    """How a benchmark computes CLIPScore: its CLIP, the text in front of every prompt, and the factor."""

    model: str
    prefix: str
    scale: float

    def __str__(self) -> str:
        return f"{self.model}, prefix {self.prefix.strip()!r}, scale {self.scale:g}"


# Their figures do not compare with one another.
CLIP_PROTOCOLS = {
    "mario": ClipProtocol("clip-vit-base-patch32", "A photo depicts ", 1.0),
    "anytext": ClipProtocol("clip-vit-base-patch32", "", 2.5),
    "cvtg": ClipProtocol("clip-vit-large-patch14", "A photo depicts ", 2.5),
}


class FeatureEncoder(Protocol):
    """What images are compared by."""

    name: str

    def features(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images (H W 3, uint8) -> B D."""


class Inception:
    """The Inception of the original FID, as the TorchScript file that StyleGAN's metrics use: 2048 features."""

    name = "inception-2015-12-05"

    def __init__(self, path: Path) -> None:
        try:
            self.model = torch.jit.load(str(path), map_location=best_device()).eval()
        except RuntimeError as error:
            raise UserError(f"{path} is no TorchScript file; download it anew.") from error

    @torch.no_grad()
    def features(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images (H W 3, uint8) of any sizes -> B 2048. The file's own code scales them."""
        device = next(self.model.parameters()).device
        rows = [
            self.model(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(device), return_features=True)
            for image in images
        ]
        return torch.cat(rows).cpu()


class PixelFeatures:
    """What colours stand where, with no network: the mean of each cell of an 8 x 8 grid (192 numbers, 0..1), and how
    much its brightness varies (64)."""

    name = "pixels, 8 x 8 cells"

    def features(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images (H W 3, uint8) of any sizes from 8 x 8 on -> B 256."""
        rows = []
        for image in images:
            pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255  # 3 H W
            grey = pixels.mean(dim=0, keepdim=True)
            means, squares = (F.adaptive_avg_pool2d(x, 8) for x in (grey, grey.square()))
            deviation = (squares - means.square()).clamp_min(0).sqrt()
            rows.append(torch.cat([F.adaptive_avg_pool2d(pixels, 8), deviation]).flatten())
        return torch.stack(rows)


def find_encoders(weights: Path, folders: Sequence[Path]) -> tuple[list[FeatureEncoder], dict[str, str]]:
    """The encoders that are there, and a sentence for each that is not: Inception, and the user's own folders.

    Raises UserError for a folder of the user's that does not exist.
    """
    encoders: list[FeatureEncoder] = []
    left_out: dict[str, str] = {}
    if (weights / INCEPTION).is_file():
        encoders.append(Inception(weights / INCEPTION))
    else:
        left_out["fid"] = (
            f"FID and KID need the Inception weights: put {INCEPTION} (from NVIDIA's stylegan3 metrics) at"
            f" {weights / INCEPTION}."
        )
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"There is no vision encoder at {folder}; give a folder as save_pretrained makes them.")
        encoders.append(VisionEncoder(folder))
    return encoders, left_out


def check_encoders(protocols: Sequence[str], weights: Path, folders: Sequence[Path]) -> None:
    """Loads what `score_fidelity` will need, and lets it go again.

    Raises UserError for weights that are there and cannot be used: better before the images are drawn than after.
    """
    find_encoders(weights, folders)
    for name in protocols:
        if name in CLIP_PROTOCOLS:
            find_clip(weights, CLIP_PROTOCOLS[name])


@dataclass(frozen=True)
class Distances:
    """How far a set of images is from the references, by one encoder; KID with its deviation over subsets.

    `images` has how many there were in each round.
    """

    encoder: str
    fid: float
    kid: float
    kid_deviation: float
    references: int
    images: tuple[int, ...]

    def __str__(self) -> str:
        """What the figures rest on."""
        fewest, most = min(self.images), max(self.images)
        many = str(most) if fewest == most else f"{fewest} to {most}"
        times = "once" if len(self.images) == 1 else f"{len(self.images)} times"
        return f"{self.encoder}, {many} images against {self.references} references, {times}"


def score_distances(encoder: FeatureEncoder, references: Iterable[Path], rounds: Sequence[Sequence[Path]]) -> Distances:
    """FID and KID of the images of each round (a sample number's) and the references, the mean over rounds.

    At least two images on either side. Features are computed once; torchmetrics computes the distances of them.
    Raises UserError for a reference that cannot be read.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    real = list(references)
    smallest = min(len(real), *(len(paths) for paths in rounds))
    if smallest < 2:
        raise UserError("A distance needs at least two images and two references.")
    passed_on = _PassedOn(encoder.features([_loaded(real[0])]).shape[1])
    fid = FrechetInceptionDistance(feature=passed_on, reset_real_features=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that KID keeps its features: see MOST_KID_FEATURES
        kid = KernelInceptionDistance(
            feature=passed_on, reset_real_features=False, subsets=100, subset_size=min(KID_SUBSET, smallest)
        )
    fid.set_dtype(torch.float64)

    def update(paths: Iterable[Path], is_real: bool) -> None:
        done = 0
        for batch in _batches(paths, BATCH):
            features = encoder.features([_loaded(path) for path in batch])
            fid.update(features, real=is_real)
            if done < MOST_KID_FEATURES:
                kid.update(features, real=is_real)
            done += len(batch)

    update(real, True)
    found: list[tuple[float, float, float]] = []
    for paths in rounds:
        update(paths, False)
        torch.manual_seed(0)  # which subsets KID takes
        mean, deviation = kid.compute()
        found.append((float(fid.compute()), float(mean), float(deviation)))
        fid.reset()
        kid.reset()
    fids, kids, deviations = (float(np.mean(column)) for column in zip(*found, strict=True))
    return Distances(encoder.name, fids, kids, deviations, len(real), tuple(map(len, rounds)))


def _loaded(path: Path) -> np.ndarray:
    try:
        return load_image(path)
    except UNREADABLE as error:
        raise UserError(f"FID and KID cannot read the image {path}; put a whole one there.") from error


class _PassedOn(nn.Module):
    """Stands where torchmetrics has its encoder: what comes are features already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def clip_scores(encoder: CLIPEncoder, protocol: ClipProtocol, pairs: Iterable[tuple[str, Path]]) -> Iterator[float]:
    """CLIPScore (Hessel et al. 2021) of every prompt and image: scale * max(cosine, 0)."""
    for batch in _batches(pairs, BATCH):
        texts = [protocol.prefix + prompt for prompt, _ in batch]
        cosines = encoder.similarity(texts, [load_image(path) for _, path in batch])
        yield from (protocol.scale * cosines.clamp_min(0)).tolist()


def score_fidelity(
    images: Sequence[BenchmarkImage],
    protocols: Sequence[str],
    weights: Path,
    folders: Sequence[Path],
    references: References = References(),  # noqa: B008 - frozen
) -> tuple[list[FidelityScore], dict[str, str]]:
    """All scores that there are weights and references for, and a sentence for each that is left out."""
    scores: list[FidelityScore] = []
    left_out: dict[str, str] = {}
    for name, clip in CLIP_PROTOCOLS.items():
        if name not in protocols or not images:
            continue
        encoder, why = find_clip(weights, clip)
        if encoder is None:
            left_out[f"clip score, {name}"] = why
        else:
            scores.append(_clip_score(encoder, clip, images))
    # The rounds: an image of each prompt that has references, once a sample number.
    rounds: dict[int, list[Path]] = {}
    for image in images:
        if image.path is not None and image.prompt.key in references.prompts:
            rounds.setdefault(image.sample, []).append(image.path)
    missing = [path for path in references.paths if not path.is_file()]
    if not references.paths:
        why = NONE_NAMED
    elif missing:
        why = (
            f"FID and KID are left out: {len(missing)} of {len(references.paths)} reference images are not there,"
            f" {missing[0]} first."
        )
    elif not rounds or min(len(references.paths), *map(len, rounds.values())) < 2:
        why = "FID and KID need at least two images a sample number, and two references."
    else:
        return _with_distances(scores, left_out, list(rounds.values()), weights, folders, references)
    return scores, {**left_out, "fid": why}


def _with_distances(
    scores: list[FidelityScore],
    left_out: dict[str, str],
    rounds: list[list[Path]],
    weights: Path,
    folders: Sequence[Path],
    references: References,
) -> tuple[list[FidelityScore], dict[str, str]]:
    encoders, absent = find_encoders(weights, folders)
    for encoder in encoders:
        try:
            found = score_distances(encoder, references.paths, rounds)
        except UserError as error:  # a broken reference: the other figures are no worse for it
            return scores, {**left_out, "fid": str(error)}
        scores.append(FidelityScore("FID", str(found), found.fid))
        scores.append(FidelityScore("KID", f"{found}; deviation over subsets {found.kid_deviation:.5f}", found.kid))
    return scores, {**left_out, **absent}


def _clip_score(encoder: CLIPEncoder, clip: ClipProtocol, images: Sequence[BenchmarkImage]) -> FidelityScore:
    """The mean over images, with its interval over prompts."""
    pairs = [(image.prompt.text, path) for image in images if (path := image.path) is not None]
    sums: dict[str, tuple[float, float]] = {}
    for image, value in zip(images, clip_scores(encoder, clip, pairs), strict=True):
        amount, of = sums.get(image.prompt.key, (0.0, 0.0))
        sums[image.prompt.key] = (amount + value, of + 1)
    mean = sum(amount for amount, _ in sums.values()) / len(pairs)
    interval = bootstrap_intervals([{"clip_score": pair} for pair in sums.values()], no_derived_metrics)["clip_score"]
    return FidelityScore("CLIPScore", f"{clip}, {len(pairs)} images", mean, *interval)


def find_clip(weights: Path, protocol: ClipProtocol) -> tuple[CLIPEncoder | None, str]:
    """The protocol's CLIP, or None and the sentence that says what goes where."""
    folder = weights / protocol.model
    if (folder / "config.json").is_file():
        return CLIPEncoder(folder), ""
    return None, (
        f"CLIPScore ({protocol}) needs its CLIP: put the folder of openai/{protocol.model} (hf download) at {folder}."
    )


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
