"""What is looked at while a stage trains: sample grids, and how well texts and images find each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vlad.config.schema import Config
from vlad.data.collate import collate
from vlad.data.dataset import first_samples
from vlad.data.shard_sets import ShardSets
from vlad.losses.contrastive import text_ids
from vlad.losses.text_side_losses import encode_prompts
from vlad.metrics.ocr import default_enlarge_factor, run_ocr
from vlad.metrics.retrieval import plot_shared_space, score_retrieval
from vlad.metrics.spelling import letter_accuracy, word_accuracy
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.reports.image_grids import GridRow, glyph_map_image, layout_image, sample_grid
from vlad.training.build import build_pipeline
from vlad.training.callbacks.validation import Look
from vlad.training.parts import Parts
from vlad.training.stages import LayoutStage, RefineStage
from vlad.types import Batch, Sample
from vlad.utils.distributed import derived_seed, is_main_process

GRID_SAMPLES = 8
LOSS_DRAWS = 4  # of noise and timestep for each image of a look
RETRIEVAL_PAIRS = 256


def grid_drawer(config: Config, parts: Parts, sets: ShardSets, name: str) -> Callable[[Path], dict[str, float]]:
    """Draws the first samples of the shards as the stage sees them now: prompt, plan, refit and image.

    Returns what an OCR engine reads in them, as evaluations score it: in the layout stage in the raw glyph maps, in the
    refine stage in the images of the true layouts.
    """
    samples = first_samples(sets, config.data.stream(config.seed), GRID_SAMPLES)
    captions = [sample.caption for sample in samples]
    prompts = [parse_prompt(caption, strict=False) for caption in captions]

    wanted = [[line.text for line in sample.layout.lines if line.valid] for sample in samples]

    def draw(path: Path) -> dict[str, float]:
        pipeline = build_pipeline(config, parts)
        seeds = list(range(len(prompts)))
        pixels = config.data.image_pixels
        if name == "layout":
            plans = pipeline.plan(prompts, seeds)
            heads = ("glyph map", "refitted", "true")
            columns = [
                (
                    glyph_map_image(plan.glyph_map),
                    layout_image(plan.layout, pixels),
                    layout_image(sample.layout, pixels),
                )
                for plan, sample in zip(plans, samples, strict=True)
                if plan.glyph_map is not None
            ]
        else:
            images = pipeline.refine(prompts, seeds, [sample.layout for sample in samples])
            heads = ("true layout", "image", "true image")
            columns = [
                (layout_image(sample.layout, pixels), image, Image.fromarray(sample.image))
                for image, sample in zip(images, samples, strict=True)
            ]
        rows = [GridRow(caption, images) for caption, images in zip(captions, columns, strict=True)]
        if not is_main_process():
            return {}  # it was only needed for its part of the weights
        path.parent.mkdir(parents=True, exist_ok=True)
        sample_grid(rows, heads, cell_pixels=max(128, pixels)).save(path)
        # The glyph map comes first, the image second.
        drawn = [np.asarray(images[name == "refine"]) for images in columns]
        return _spelled(drawn, wanted)

    return draw


def _spelled(images: list[np.ndarray], wanted: list[list[str]]) -> dict[str, float]:
    """The shares of images and of letters that read as wanted, of those that are to hold text."""
    chosen = [number for number, strings in enumerate(wanted) if strings]
    if not chosen:
        return {}
    height, width = images[0].shape[:2]
    shown = [images[number] for number in chosen]
    readings = list(run_ocr("rapidocr", shown, default_enlarge_factor(width, height)))
    strings = [wanted[number] for number in chosen]
    return {
        "grid_word_accuracy": word_accuracy(readings, strings),
        "grid_letter_accuracy": letter_accuracy(readings, strings),
    }


def retrieval_measure(
    config: Config, parts: Parts, pairs: ShardSets | None
) -> Callable[[Path], dict[str, float]] | None:
    """Scores the first pairs of the held-out set in the shared space as it is now, and draws that space.

    None without `data.held_out` or without L_align.
    """
    if pairs is None or not config.losses.align_weight:
        return None
    samples = first_samples(pairs, config.data.stream(config.seed), RETRIEVAL_PAIRS)
    size = config.data.batch_size
    batches = [collate(samples[start : start + size]) for start in range(0, len(samples), size)]

    @torch.no_grad()
    def measure(path: Path) -> dict[str, float]:
        device = next(parts.alignment.parameters()).device
        texts, images, ids = [], [], []
        for batch in batches:
            moved = batch.to(device)
            read = encode_prompts(parts.text_side, moved)
            v = parts.alignment.v(parts.text_side.lvlm.image_features(moved.images))
            texts.append(parts.alignment.contrast.embed_texts(parts.alignment.t(read.t)))
            images.append(parts.alignment.contrast.embed_images(v))
            ids.append(text_ids(read.prompts)[:, 0])
        scores = score_retrieval(torch.cat(texts), torch.cat(images), torch.cat(ids))
        if not is_main_process():
            return {}
        path.parent.mkdir(parents=True, exist_ok=True)
        title = f"{scores.pairs} held-out pairs, recall@1 {scores.text_to_image[1]:.1%} / {scores.image_to_text[1]:.1%}"
        plot_shared_space(torch.cat(texts), torch.cat(images), path, title)
        return scores.metrics()

    return measure


def look_taker(
    config: Config, parts: Parts, own: ShardSets, held_out: ShardSets, name: str
) -> Callable[[LayoutStage | RefineStage], Look]:
    """Measures a stage on held-out images and on as many of those that are trained on; always with the same noise.

    The refine stage also draws held-out captions on their true layouts, and the OCR engine reads them.
    """
    options, stream = config.validation, config.data.stream(config.seed)
    held = first_samples(held_out, stream, options.images)
    trained = first_samples(own, stream, len(held))
    size = config.data.batch_size

    def batches(samples: list[Sample]) -> list[Batch]:
        return [collate(samples[start : start + size]) for start in range(0, len(samples), size)]

    sets = {"held out": batches(held), "trained": batches(trained)}
    readable = [sample for sample in held if any(line.valid for line in sample.layout.lines)][: options.read_images]

    def loss(stage: LayoutStage | RefineStage, which: str) -> float:
        total = count = 0.0
        devices = [stage.device] if stage.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            for draw in range(LOSS_DRAWS):
                for number, batch in enumerate(sets[which]):
                    torch.manual_seed(derived_seed(config.seed, "look", draw, number))
                    total += float(stage.held_out_loss(batch.to(stage.device))) * len(batch.keys)
                    count += len(batch.keys)
        return total / count

    def take(stage: LayoutStage | RefineStage) -> Look:
        letters = _letters_read(config, parts, readable) if name == "refine" and readable else None
        return Look(loss(stage, "held out"), loss(stage, "trained"), letters)

    return take


def _letters_read(config: Config, parts: Parts, samples: list[Sample]) -> float:
    """The share (0..1) of letters that the OCR engine reads in images drawn on the samples' captions and layouts."""
    pipeline = build_pipeline(config, parts)
    prompts = [parse_prompt(sample.caption, strict=False) for sample in samples]
    images = pipeline.refine(prompts, list(range(len(samples))), [sample.layout for sample in samples])
    factor = default_enlarge_factor(config.data.image_pixels, config.data.image_pixels)
    readings = list(run_ocr("rapidocr", [np.asarray(image) for image in images], factor))
    return letter_accuracy(readings, [[line.text for line in sample.layout.lines if line.valid] for sample in samples])
