"""FID and KID between image sets: encoders of features, and the distances that torchmetrics computes of them.

    images --> encoder --> features --> FID (Frechet distance), KID (polynomial kernel)

Weights are read from this machine; nothing is downloaded. As in MARIO-Eval, FID compares one image of every prompt with
the references, once for each sample number, and is the mean over these rounds.
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

from vlad.eval.image_files import load_image
from vlad.models.metric_encoders import VisionEncoder
from vlad.utils.errors import UserError
from vlad.utils.hardware import best_device

INCEPTION = "inception-2015-12-05.pt"
BATCH = 16
MOST_KID_FEATURES = 10_000  # KID stores its features: more would fill the memory and change its value little
KID_SUBSET = 1000
Item = TypeVar("Item")


class FeatureEncoder(Protocol):
    """Features of images that distances compare."""

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
            raise UserError(f"{path} is no TorchScript file; download it again.") from error

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
    """Colours by position, without a network: the mean of each cell of an 8 x 8 grid (192 numbers, 0..1) and the
    standard deviation of its brightness (64)."""

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
    """Inception where its weights are present, and the encoders of the folders; also why Inception is left out.

    Raises UserError for a folder that does not exist.
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


@dataclass(frozen=True)
class Distances:
    """Distances of images from the references by one encoder, KID with its deviation over subsets.

    `images` has the number of images in each round.
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

    At least two images on either side. Features are computed once. Raises UserError for a reference that cannot be
    read.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    real = list(references)
    smallest = min(len(real), *(len(paths) for paths in rounds))
    if smallest < 2:
        raise UserError("A distance needs at least two images and two references.")
    identity = _Identity(encoder.features([_load(real[0])]).shape[1])
    fid = FrechetInceptionDistance(feature=identity, reset_real_features=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # KID stores its features: see MOST_KID_FEATURES
        kid = KernelInceptionDistance(
            feature=identity, reset_real_features=False, subsets=100, subset_size=min(KID_SUBSET, smallest)
        )
    fid.set_dtype(torch.float64)

    def update(paths: Iterable[Path], is_real: bool) -> None:
        done = 0
        for batch in batches(paths, BATCH):
            features = encoder.features([_load(path) for path in batch])
            fid.update(features, real=is_real)
            if done < MOST_KID_FEATURES:
                kid.update(features, real=is_real)
            done += len(batch)

    update(real, True)
    by_round: list[tuple[float, float, float]] = []
    for paths in rounds:
        update(paths, False)
        torch.manual_seed(0)  # KID's random subsets
        mean, deviation = kid.compute()
        by_round.append((float(fid.compute()), float(mean), float(deviation)))
        fid.reset()
        kid.reset()
    fids, kids, deviations = (float(np.mean(column)) for column in zip(*by_round, strict=True))
    return Distances(encoder.name, fids, kids, deviations, len(real), tuple(map(len, rounds)))


def _load(path: Path) -> np.ndarray:
    try:
        return load_image(path)
    except ValueError as error:
        raise UserError(f"FID and KID cannot read the image {path}; put a whole one there.") from error


class _Identity(nn.Module):
    """Takes the place of torchmetrics' encoder: its inputs are features already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
