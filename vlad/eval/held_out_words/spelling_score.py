"""Does it spell? Held-out English words, drawn in three ways and read by an OCR engine.

refit        prompt -> layout UNet -> refit -> refine UNet -> OCR       the product
true layout  prompt + the true layout -> refine UNet -> OCR             stage two alone
raw          prompt -> layout UNet -> refine UNet -> OCR                the paper's method, no refit
no layout    prompt -> refine UNet -> OCR                               all that a model trained without layouts does
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlad.eval.options import GENERATION_MODES, GenerationMode
from vlad.metrics.colours import ColourScore, score_colours
from vlad.metrics.ocr import run_ocr
from vlad.metrics.positions import PositionScore, score_positions
from vlad.metrics.spelling import letter_accuracy, spells_exactly
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.reports.image_grids import GridRow, draw_layout, image_of_map, sample_grid
from vlad.types import Layout, Sample


@dataclass(frozen=True)
class SpellingScore:
    """One way of drawing: exact words, letters, colours and places (of the images), time to sample them all."""

    mode: GenerationMode
    words: int
    word_accuracy: float
    letter_accuracy: float
    colours: ColourScore
    places: PositionScore
    sampling_seconds: float
    misread: tuple[tuple[str, str], ...]  # wanted, read


def modes_of(pipeline: VLADPipeline) -> tuple[GenerationMode, ...]:
    """The ways in which a pipeline can draw."""
    if not pipeline.uses_layout:
        return ("no layout",)
    return GENERATION_MODES if pipeline.layout_unet is not None else ("true layout",)


def score_spelling(
    pipeline: VLADPipeline,
    signs: list[Sample],
    mode: GenerationMode,
    engine: str = "rapidocr",
    on_progress: Callable[[int], None] | None = None,
) -> tuple[SpellingScore, list[Image.Image], list[GridRow]]:
    """Draws the signs' captions in one way and reads them; also the images, and rows for a grid of all."""
    prompts = [sign.caption for sign in signs]
    layouts = [sign.layout for sign in signs] if mode == "true layout" else None
    started = time.monotonic()
    drawn = pipeline(prompts, list(range(len(signs))), layouts, refit=mode != "raw")
    seconds = time.monotonic() - started
    images = [np.asarray(image) for image in drawn.images]
    readings = list(run_ocr(engine, images, on_progress=on_progress))
    wanted = [[line.text for line in sign.layout.lines] for sign in signs]
    right = [spells_exactly(lines, strings) for lines, strings in zip(readings, wanted, strict=True)]
    # Where the text stands is known from the layout that was drawn; raw maps are refitted for this alone.
    colours = score_colours(images, drawn.layouts, prompts)
    misread = tuple(
        (" ".join(strings), " ".join(line.text for line in lines))
        for lines, strings, ok in zip(readings, wanted, right, strict=True)
        if not ok
    )
    score = SpellingScore(
        mode=mode,
        words=len(signs),
        word_accuracy=float(np.mean(right)),
        letter_accuracy=letter_accuracy(readings, wanted),
        colours=colours,
        places=score_positions(readings, prompts),
        sampling_seconds=seconds,
        misread=misread,
    )
    rows = [
        GridRow(f"{'' if ok else 'MISREAD  '}{prompt}", _steps_of(mode, plan, layout, image))
        for ok, prompt, plan, layout, image in zip(
            right, prompts, drawn.glyph_maps, drawn.layouts, drawn.images, strict=True
        )
    ]
    return score, drawn.images, rows


HEADS: dict[GenerationMode, tuple[str, ...]] = {
    "refit": ("raw plan", "layout", "image"),
    "true layout": ("true layout", "image"),
    "raw": ("raw plan", "image"),
    "no layout": ("image",),
}


def _steps_of(
    mode: GenerationMode, plan: np.ndarray | None, layout: Layout, image: Image.Image
) -> tuple[Image.Image, ...]:
    """What an image was drawn from, and the image, as `HEADS` calls them; a raw plan is no layout of letters."""
    planned = () if plan is None else (image_of_map(plan),)
    given = () if mode in ("raw", "no layout") else (draw_layout(layout, image.width),)
    return (*(planned if mode in ("refit", "raw") else ()), *given, image)


def spelling_grid(rows: list[GridRow], mode: GenerationMode, columns: int = 4) -> Image.Image:
    """The rows as one image, from what was planned to what was drawn."""
    return sample_grid(rows, HEADS[mode], cell_pixels=128, columns=columns)
