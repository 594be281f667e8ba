"""Comparison of a base without and with adapters: distance to held-out images, and spelling.

OUT/before-after.png            prompt, before, after, the true image, on the same seeds
OUT/before, OUT/after, OUT/held-out
                                the scored images
OUT/metrics.json                distances, words and letters read
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlad.config.load import load_config
from vlad.config.schema import Config
from vlad.data.dataset import first_samples
from vlad.data.options import SyntheticOptions
from vlad.data.signs import held_out_signs
from vlad.eval.fidelity.distances import PixelFeatures, score_distances
from vlad.inference.load_pipeline import load_pipeline
from vlad.metrics.ocr import default_enlarge_factor, run_ocr
from vlad.metrics.spelling import letter_accuracy, word_accuracy
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.reports.image_grids import GridRow, sample_grid
from vlad.training.run_data import open_data
from vlad.types import Sample
from vlad.utils.atomic_files import write_json
from vlad.utils.errors import UserError
from vlad.utils.paths import writable_directory

SHOWN = 8  # held-out images in the grid
SEED = 1000  # of the first image


@dataclass(frozen=True)
class ModelScores:
    """A model's scores on the held-out captions, and on signs like those of its base's training (None: no signs)."""

    distance: float  # Frechet, of pixel features, to the held-out images
    words: float
    letters: float
    sign_words: float | None
    sign_letters: float | None


@dataclass(frozen=True)
class Comparison:
    """The scores before and after; `floor` is the distance of training images from the held-out ones."""

    images: int
    before: ModelScores
    after: ModelScores
    floor: float
    encoder: str


def compare_adapters(
    base: Path, adapters: Sequence[str], out: Path, images_each: int = 2, signs: int = 100
) -> tuple[Comparison, Path]:
    """Generates the captions that the adapter's run held out, before and after, and scores both; also the grid's path.

    `adapters` as sample.py takes them; the first one's run names the held-out images. So many `signs` of one word
    show what is forgotten. Raises UserError for an adapter whose run held out nothing.
    """
    config = _config_of(adapters[0])
    held, trained = _held_out(config)
    out = writable_directory(out, "the comparison")
    pipeline = load_pipeline(base)
    pixels = pipeline.config.image_pixels
    samples = [sample for sample in held for _ in range(images_each)]
    captions = [sample.caption for sample in samples]
    targets = [[line.text for line in sample.layout.lines if line.valid] for sample in samples]
    options = SyntheticOptions(size_pixels=pixels)
    plain_signs = held_out_signs(options, signs) if signs else []
    references = _save([Image.fromarray(sample.image) for sample in held], out / "held-out")
    encoder = PixelFeatures()

    def score(name: str) -> tuple[ModelScores, list[Image.Image]]:
        images = _generate(pipeline, captions)
        distance = score_distances(encoder, references, [_save(images, out / name)]).fid
        words, letters = _accuracies(images, targets)
        sign_images = _generate(pipeline, [sign.caption for sign in plain_signs]) if plain_signs else []
        sign_targets = [[line.text for line in sign.layout.lines] for sign in plain_signs]
        signs_read = _accuracies(sign_images, sign_targets) if sign_images else (None, None)
        return ModelScores(distance, words, letters, *signs_read), images

    before, plain = score("before")
    pipeline.load_adapters(adapters)
    after, adapted = score("after")
    training_images = _save([Image.fromarray(sample.image) for sample in trained], out / "trained")
    floor = score_distances(encoder, references, [training_images]).fid
    found = Comparison(len(samples), before, after, floor, encoder.name)
    page = out / "before-after.png"
    rows = [
        GridRow(sample.caption, (plain[place], adapted[place], Image.fromarray(sample.image)))
        for place, sample in enumerate(samples)
        if place % images_each == 0
    ]
    sample_grid(rows[:SHOWN], ("before", "after", "held out"), cell_pixels=128).save(page)
    write_json(out / "metrics.json", asdict(found))
    return found, page


def comparison_table(found: Comparison) -> str:
    """The comparison as a table for a terminal."""
    rows: list[tuple[str, Any, Any]] = [
        ("distance to held-out images", f"{found.before.distance:.3f}", f"{found.after.distance:.3f}"),
        ("words read", f"{found.before.words:.1%}", f"{found.after.words:.1%}"),
        ("letters read", f"{found.before.letters:.1%}", f"{found.after.letters:.1%}"),
    ]
    if found.before.sign_words is not None:
        rows.append(("words read on plain signs", f"{found.before.sign_words:.1%}", f"{found.after.sign_words:.1%}"))
    lines = [f"{'':32}{'before':>10}{'after':>10}"]
    lines += [f"{name:32}{before:>10}{after:>10}" for name, before, after in rows]
    note = f"{found.images} images; Frechet distance of {found.encoder}; trained images: {found.floor:.3f}."
    return "\n".join([*lines, note])


def _config_of(adapter: str) -> Config:
    """The config of an adapter's run. Raises UserError for an adapter folder without its run."""
    before, _, weight = adapter.replace("=", ":").rpartition(":")
    folder = Path(before if before and _is_number(weight) else adapter)
    for run in (folder, folder.parent):
        if (run / "config.yaml").is_file():
            return load_config(run / "config.yaml")
    raise UserError(f"{folder} is no LoRA run (config.yaml is missing), which names the held-out images.")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _held_out(config: Config) -> tuple[list[Sample], list[Sample]]:
    """All held-out samples of a run, and as many of its training samples."""
    sets = open_data(config)
    if sets.held_out is None:
        raise UserError(f"{config.directory} has held out no images; train with validation.share=0.2.")
    stream = config.data.stream(config.seed)
    held = first_samples(sets.held_out, stream, sets.held_out.samples)
    if len(held) < 2:
        raise UserError(
            f"{config.directory} has held out {len(held)} of its images, and a distance needs at least two; train it"
            " with a larger validation.share, or with more images."
        )
    return held, first_samples(sets.shards, stream, len(held))


def _generate(pipeline: VLADPipeline, prompts: list[str]) -> list[Image.Image]:
    images: list[Image.Image] = pipeline(prompts, [SEED + place for place in range(len(prompts))]).images
    return images


def _accuracies(images: list[Image.Image], targets: list[list[str]]) -> tuple[float, float]:
    """Accuracies (0..1) of words and letters, read by OCR."""
    arrays = [np.asarray(image) for image in images]
    results = list(run_ocr("rapidocr", arrays, default_enlarge_factor(*images[0].size)))
    return word_accuracy(results, targets), letter_accuracy(results, targets)


def _save(images: list[Image.Image], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04d}.png" for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    return paths
