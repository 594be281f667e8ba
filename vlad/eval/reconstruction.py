"""Reconstruction: what an autoencoder keeps of small text, with and without noise on the latents.

    image -> scaled latents -> + noise of 0, 0.1, 0.2 -> image -> PSNR, lines that an OCR engine reads, by letter height

No model that generates this autoencoder's latents spells better than it reconstructs; the noise stands for what a
sampler leaves on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tqdm import tqdm

from vlad.config.load import load_config
from vlad.config.schema import Config
from vlad.data.dataset import first_samples
from vlad.data.options import PosterOptions, StreamOptions
from vlad.data.posters.render import held_out_posters
from vlad.data.shard_sets import open_sets
from vlad.metrics.line_matching import HEIGHT_BANDS, height_band, match_lines
from vlad.metrics.ocr import build_ocr_engine, poster_enlarge_factor, run_ocr
from vlad.models.autoencoder import ImageAutoencoder, build_autoencoder, decode, latent_moments, read_autoencoder
from vlad.pipeline.folders import pipeline_folder, reporting_damage
from vlad.reports.image_grids import GridRow, sample_grid
from vlad.training.parts import TRAINED
from vlad.types import Layout, Sample
from vlad.utils.atomic_files import write_json
from vlad.utils.errors import UserError
from vlad.utils.hardware import best_device
from vlad.utils.paths import checked_path, writable_directory

NOISES = (0.0, 0.1, 0.2)  # standard deviations, on scaled latents
BATCH = 8
GRID_ROWS = 12


@dataclass(frozen=True)
class LinesOfHeight:
    """Lines of one band of letter heights: all, and those read exactly on the true image."""

    lines: int
    read_on_truth: int


@dataclass(frozen=True)
class NoiseLevel:
    """Round trips with one strength of noise: mean PSNR (dB), and lines read exactly, also by letter height.

    `still_read` counts those that the engine reads on the true image too: the share of `Reconstruction.read_on_truth`
    that survives does not depend on what the engine cannot read anyway.
    """

    noise: float
    psnr: float
    read: int
    still_read: int
    read_by_height: dict[str, int]
    still_read_by_height: dict[str, int]


@dataclass(frozen=True)
class Reconstruction:
    """What an autoencoder keeps of images with text. `latent_deviation`: of their scaled latents, without noise."""

    target: str
    autoencoder: str
    engine: str
    images: int
    size_pixels: int
    latent_shape: tuple[int, ...]
    latent_deviation: float
    lines: int
    read_on_truth: int
    heights: dict[str, LinesOfHeight]
    levels: tuple[NoiseLevel, ...]

    def table(self) -> str:
        """The figures for a terminal."""
        names = [name for name, band in self.heights.items() if band.read_on_truth]
        rows = [
            f"{self.autoencoder} of {self.target}: {self.images} images of {self.size_pixels} x {self.size_pixels},"
            f" latents {' x '.join(map(str, self.latent_shape))} of deviation {self.latent_deviation:.2f}",
            f"{self.engine} reads {self.read_on_truth} of {self.lines} lines exactly on the true images"
            f" ({self.read_on_truth / max(1, self.lines):.1%})",
            f"{'':10}{'':10}{'lines read, of':>18}   of these, by letter height in pixels (lines)",
            f"{'noise':10}{'PSNR':>10}{'all':>9}{'those':>9}   "
            + " ".join(f"{f'{name} ({self.heights[name].read_on_truth})':>12}" for name in names),
        ]
        for level in self.levels:
            bands = (level.still_read_by_height.get(name, 0) / self.heights[name].read_on_truth for name in names)
            rows.append(
                f"{level.noise:<10g}{level.psnr:7.2f} dB{level.read / max(1, self.lines):9.1%}"
                f"{level.still_read / max(1, self.read_on_truth):9.1%}   " + " ".join(f"{band:12.1%}" for band in bands)
            )
        return "\n".join(rows)


def evaluate_reconstruction(
    target: Path,
    count: int,
    engine: str = "rapidocr",
    shards: str | None = None,
    size_pixels: int | None = None,
    out: Path | None = None,
) -> tuple[Reconstruction, Path]:
    """Writes reconstruction.json and reconstruction.png, and returns the figures with the folder of both.

    Images are held-out posters, of the options of the run's config where the target is one that has them, else the
    first of `shards`. `size_pixels` None: the run's, or a poster's. Raises UserError for a target without autoencoder.
    """
    build_ocr_engine(engine)
    config = load_config(target / "config.yaml") if _is_run(target) else None
    autoencoder = load_target(target, config)
    options = config.data.posters if config is not None and config.data.posters is not None else PosterOptions()
    size = size_pixels or (config.data.image_pixels if config is not None else options.size_pixels)
    if shards is None:
        samples = held_out_posters(replace(options, size_pixels=size), count)
    else:
        samples = _legible(
            first_samples(open_sets({shards: 1.0}, option="--shards"), StreamOptions(image_pixels=size), count)
        )
        if not samples:
            raise UserError(f"--shards: {shards} holds no image with a line of text; name shards that do.")
    folder = writable_directory(out or _default_out(target), "the evaluation", needed_bytes=20_000_000)
    result, restored = reconstruct(autoencoder, samples, engine, str(target))
    write_json(folder / "reconstruction.json", asdict(result))
    _grid(samples, restored).save(folder / "reconstruction.png")
    return result, folder


def reconstruct(
    autoencoder: ImageAutoencoder, samples: Sequence[Sample], engine: str, target: str = ""
) -> tuple[Reconstruction, list[list[np.ndarray]]]:
    """The figures of square images of one size, and the reconstructed images (H W 3, uint8) by strength of noise."""
    size = samples[0].image.shape[0]
    latents, deviation, restored = _round_trips(autoencoder, samples)
    with tqdm(total=(1 + len(NOISES)) * len(samples), desc="reading", unit="image") as bar:
        read_on_truth = _lines_read(samples, [sample.image for sample in samples], engine, bar)
        heights = [height_band(line, size, size) for sample in samples for line in sample.layout.lines]
        levels = []
        for noise, images in zip(NOISES, restored, strict=True):
            read = _lines_read(samples, images, engine, bar)
            still = [before and after for before, after in zip(read_on_truth, read, strict=True)]
            levels.append(
                NoiseLevel(
                    noise,
                    float(np.mean([_psnr(sample.image, image) for sample, image in zip(samples, images, strict=True)])),
                    sum(read),
                    sum(still),
                    _by_height(heights, read),
                    _by_height(heights, still),
                )
            )
    known = _by_height(heights, read_on_truth)
    result = Reconstruction(
        target=target,
        autoencoder=type(autoencoder).__name__,
        engine=build_ocr_engine(engine).name,
        images=len(samples),
        size_pixels=size,
        latent_shape=latents,
        latent_deviation=deviation,
        lines=len(heights),
        read_on_truth=sum(read_on_truth),
        heights={
            name: LinesOfHeight(heights.count(name), known.get(name, 0)) for name in HEIGHT_BANDS if name in heights
        },
        levels=tuple(levels),
    )
    return result, restored


def load_target(target: Path, config: Config | None) -> ImageAutoencoder:
    """The autoencoder of a run (its stage has to be finished), of a pipeline, or of a folder of its own."""
    if not checked_path(target, "TARGET").exists():
        raise UserError(f"There is nothing at {target}; name a run, a pipeline or the folder of an autoencoder.")
    if (target / "config.json").is_file():
        return read_autoencoder(target)
    stage = target / "autoencoder" / TRAINED
    if config is not None and stage.is_file() and not (target / "pipeline" / "model_index.json").is_file():
        autoencoder = build_autoencoder(config.autoencoder)
        with reporting_damage(stage):
            weights = {name.removeprefix("autoencoder."): value for name, value in load_file(stage).items()}
            autoencoder.load_state_dict(weights)
        return autoencoder.eval()
    folder = pipeline_folder(target)
    for part in ("autoencoder", "vae"):
        if (folder / part / "config.json").is_file():
            return read_autoencoder(folder / part)
    raise UserError(f"{folder} has no autoencoder that reconstructs images; name a folder of one.")


def _legible(samples: Sequence[Sample]) -> list[Sample]:
    """The samples that have legible lines, with those alone."""
    lines = [tuple(line for line in sample.layout.lines if line.valid) for sample in samples]
    return [replace(sample, layout=Layout(own)) for sample, own in zip(samples, lines, strict=True) if own]


def _is_run(target: Path) -> bool:
    return (target / "config.yaml").is_file()


def _default_out(target: Path) -> Path:
    if _is_run(target):
        return target / "evaluation"
    return Path("evaluations") / f"{target.resolve().name}-reconstruction"


@torch.no_grad()
def _round_trips(
    autoencoder: ImageAutoencoder, samples: Sequence[Sample]
) -> tuple[tuple[int, ...], float, list[list[np.ndarray]]]:
    """Shape and standard deviation of the scaled latents, and the images restored from them, by strength of noise."""
    device = best_device()
    autoencoder.to(device)
    restored: list[list[np.ndarray]] = [[] for _ in NOISES]
    squares, generator = [], torch.Generator().manual_seed(0)
    for start in range(0, len(samples), BATCH):
        images = np.stack([sample.image for sample in samples[start : start + BATCH]])
        pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        try:
            latents, _ = latent_moments(autoencoder, pixels)
            assert latents.ndim == 4
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise UserError(
                f"{type(autoencoder).__name__} does not encode images of {images.shape[1]} x {images.shape[2]} as"
                f" those of its kind do ({error}); take an autoencoder of single images, or give another --size."
            ) from error
        shape = tuple(latents.shape[1:])
        squares.append((latents.float() - latents.float().mean(dim=(0, 2, 3), keepdim=True)).square().mean().item())
        random = torch.randn(latents.shape, generator=generator).to(latents)
        for noise, images_restored in zip(NOISES, restored, strict=True):
            result = decode(autoencoder, latents + noise * random)
            if result.shape != pixels.shape:
                raise UserError(
                    f"{type(autoencoder).__name__} restores images of {pixels.shape[-1]} pixels as"
                    f" {result.shape[-1]}; give a --size that it divides evenly, such as 128 or 256."
                )
            values = ((result.float() + 1) * 127.5).round().clamp(0, 255).byte()
            images_restored.extend(values.permute(0, 2, 3, 1).cpu().numpy())
    return shape, float(np.mean(squares)) ** 0.5, restored


def _lines_read(samples: Sequence[Sample], images: Sequence[np.ndarray], engine: str, bar: Any) -> list[bool]:
    """Whether each line of all samples, one after the other, is read exactly in the images."""
    found = []
    factor = poster_enlarge_factor(images[0].shape[0])
    for sample, boxes in zip(samples, run_ocr(engine, images, factor), strict=True):
        found += [line.is_exact for line in match_lines(boxes, [line.text for line in sample.layout.lines]).lines]
        bar.update()
    return found


def _by_height(heights: Sequence[str], read: Sequence[bool]) -> dict[str, int]:
    """How many lines of each band of heights are read."""
    return dict(Counter(height for height, is_read in zip(heights, read, strict=True) if is_read))


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two images (H W 3, uint8); of equal ones that of an error of 1 in one
    thousand values."""
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


def _grid(samples: Sequence[Sample], restored: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """True and reconstructed images at double size."""
    rows = [
        GridRow(sample.caption, tuple(map(Image.fromarray, (sample.image, *trips))))
        for sample, trips in zip(samples[:GRID_ROWS], zip(*restored, strict=True), strict=False)
    ]
    headings = ("true image", *(f"round trip, noise {noise:g}" for noise in NOISES))
    return sample_grid(rows, headings, cell_pixels=2 * samples[0].image.shape[0], columns=1)
