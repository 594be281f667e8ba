"""Sample grids: the first prompts of the shards, generated with the averaged weights, and what OCR reads in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vlad.config.schema import Config
from vlad.data.dataset import first_samples
from vlad.data.shard_sets import ShardSets
from vlad.metrics.ocr import default_enlarge_factor, run_ocr
from vlad.metrics.spelling import letter_accuracy, word_accuracy
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.reports.image_grids import GridRow, glyph_map_image, layout_image, sample_grid
from vlad.training.build import build_pipeline
from vlad.training.callbacks.ema import EMA
from vlad.training.callbacks.periodic_evaluation import PeriodicEvaluation
from vlad.training.parts import Parts
from vlad.utils.distributed import is_main_process

GRID_SAMPLES = 8


class SampleGrid(PeriodicEvaluation):
    """Every `trainer.sample_every_steps` steps a grid to RUN/samples/STAGE, always on the same prompts and seeds.

    The layout stage shows glyph maps, raw and refitted; the refine stage images on the true layouts. The figures are
    those of evaluations: what an OCR engine reads in the raw glyph maps, or in the images.
    """

    def __init__(self, config: Config, parts: Parts, shards: ShardSets, stage: str, ema: EMA) -> None:
        super().__init__(config.directory / "samples" / stage, config.trainer.sample_every_steps, ema)
        self.config, self.parts, self.stage = config, parts, stage
        self.samples = first_samples(shards, config.data.stream(config.seed), GRID_SAMPLES)
        self.prompts = [parse_prompt(sample.caption, strict=False) for sample in self.samples]

    def evaluate(self, path: Path) -> dict[str, float]:
        pipeline = build_pipeline(self.config, self.parts)
        seeds, pixels = list(range(len(self.prompts))), self.config.data.image_pixels
        if self.stage == "layout":
            plans = pipeline.plan(self.prompts, seeds)
            heads = ("glyph map", "refitted", "true")
            columns = [
                (
                    glyph_map_image(plan.glyph_map),
                    layout_image(plan.layout, pixels),
                    layout_image(sample.layout, pixels),
                )
                for plan, sample in zip(plans, self.samples, strict=True)
                if plan.glyph_map is not None
            ]
            generated = [glyph_map for glyph_map, _, _ in columns]
        else:
            generated = pipeline.refine(self.prompts, seeds, [sample.layout for sample in self.samples])
            heads = ("true layout", "image", "true image")
            columns = [
                (layout_image(sample.layout, pixels), image, Image.fromarray(sample.image))
                for image, sample in zip(generated, self.samples, strict=True)
            ]
        if not is_main_process():
            return {}  # it was needed for its part of the weights alone
        rows = [GridRow(sample.caption, images) for sample, images in zip(self.samples, columns, strict=True)]
        path.parent.mkdir(parents=True, exist_ok=True)
        sample_grid(rows, heads, cell_pixels=max(128, pixels)).save(path)
        wanted = [[line.text for line in sample.layout.lines if line.valid] for sample in self.samples]
        return grid_accuracy([np.asarray(image) for image in generated], wanted)


def grid_accuracy(images: list[np.ndarray], wanted: list[list[str]]) -> dict[str, float]:
    """The shares of images and of letters that read as wanted, of the images that are to hold text."""
    chosen = [number for number, strings in enumerate(wanted) if strings]
    if not chosen:
        return {}
    height, width = images[0].shape[:2]
    readings = list(run_ocr("rapidocr", [images[number] for number in chosen], default_enlarge_factor(width, height)))
    strings = [wanted[number] for number in chosen]
    return {
        "grid_word_accuracy": word_accuracy(readings, strings),
        "grid_letter_accuracy": letter_accuracy(readings, strings),
    }
