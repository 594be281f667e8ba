"""Spelling of held-out English words: a run generates rendered signs' captions, an OCR engine reads the images.

mode         what generates the image
refit        prompt -> layout UNet -> refit -> refine UNet      the product
true layout  prompt + the true layout -> refine UNet            stage two alone
raw          prompt -> layout UNet -> refine UNet               the paper's method, without refit
no layout    prompt -> refine UNet                              the one mode of a model trained without layouts
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from vlad.config.schema import Config
from vlad.data.signs import held_out_signs
from vlad.eval.held_out_words.evaluation_rows import HeldOutSet, ScoreRow, evaluate_rows, modes_of, write_images
from vlad.eval.intervals import wilson_interval
from vlad.eval.options import GenerationMode
from vlad.metrics.colours import ColourScore, score_colours
from vlad.metrics.ocr import run_ocr
from vlad.metrics.positions import PositionScore, score_positions
from vlad.metrics.spelling import letter_accuracy, spells_exactly
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.reports.image_grids import GridRow, glyph_map_image, layout_image, sample_grid
from vlad.types import Layout, Sample

PROTOCOL = "image enlarged 4 times (bicubic), exact match of the whole reading, case and spaces ignored"
MISREAD_SHOWN = 12
GRID_ROWS = 32
GRID_COLUMNS = 4
GRID_HEADS: dict[GenerationMode, tuple[str, ...]] = {
    "refit": ("raw plan", "layout", "image"),
    "true layout": ("true layout", "image"),
    "raw": ("raw plan", "image"),
    "no layout": ("image",),
}


@dataclass(frozen=True)
class SpellingScore:
    """One mode's accuracies (0..1) of words and letters, colours and positions, and the time to sample all images."""

    mode: GenerationMode
    words: int
    word_accuracy: float
    letter_accuracy: float
    colours: ColourScore
    places: PositionScore
    sampling_seconds: float
    misread: tuple[tuple[str, str], ...]  # target text, OCR result


def evaluate_spelling(
    run: Path, count: int = 200, engine: str = "rapidocr", modes: Sequence[GenerationMode] | None = None
) -> dict[str, Any]:
    """Scores a finished run on rendered signs in `modes` (None: all): writes RUN/evaluation/ and returns the metrics.

    Modes that were scored before, of as many words by the same engine with the same weights, keep their figures.
    """

    def rows_of(config: Config, pipeline: VLADPipeline) -> dict[str, ScoreRow]:
        signs = held_out_signs(config.data.synthetic, count)

        def row_of(mode: GenerationMode) -> ScoreRow:
            return ScoreRow(mode, lambda out: asdict(_evaluate_mode(pipeline, signs, mode, engine, out)))

        return {mode: row_of(mode) for mode in modes_of(pipeline)}

    return evaluate_rows(run, HeldOutSet("words", count, PROTOCOL), engine, modes, rows_of)


def _evaluate_mode(
    pipeline: VLADPipeline, signs: list[Sample], mode: GenerationMode, engine: str, out: Path
) -> SpellingScore:
    """Scores one mode; writes OUT/MODE/0000.png, ... and the grid OUT/MODE.png."""
    with tqdm(total=len(signs), desc=f"scoring, {mode}", unit="image") as bar:
        score, images, rows = score_spelling(pipeline, signs, mode, engine, lambda done: bar.update(done - bar.n))
    grid = sample_grid(rows[:GRID_ROWS], GRID_HEADS[mode], cell_pixels=128, columns=GRID_COLUMNS)
    write_images(out, mode, images, grid)
    return score


def score_spelling(
    pipeline: VLADPipeline,
    signs: list[Sample],
    mode: GenerationMode,
    engine: str = "rapidocr",
    on_progress: Callable[[int], None] | None = None,
) -> tuple[SpellingScore, list[Image.Image], list[GridRow]]:
    """Generates the signs' captions in one mode and reads them; also the images, and rows for a grid of all."""
    prompts = [sign.caption for sign in signs]
    layouts = [sign.layout for sign in signs] if mode == "true layout" else None
    started = time.monotonic()
    generated = pipeline(prompts, list(range(len(signs))), layouts, refit=mode != "raw")
    seconds = time.monotonic() - started
    images = [np.asarray(image) for image in generated.images]
    results = list(run_ocr(engine, images, on_progress=on_progress))
    targets = [[line.text for line in sign.layout.lines] for sign in signs]
    correct = [spells_exactly(lines, strings) for lines, strings in zip(results, targets, strict=True)]
    score = SpellingScore(
        mode=mode,
        words=len(signs),
        word_accuracy=float(np.mean(correct)),
        letter_accuracy=letter_accuracy(results, targets),
        # The layout says where the text is; raw maps are refitted for this alone.
        colours=score_colours(images, generated.layouts, prompts),
        places=score_positions(results, prompts),
        sampling_seconds=seconds,
        misread=tuple(
            (" ".join(strings), " ".join(line.text for line in lines))
            for lines, strings, is_correct in zip(results, targets, correct, strict=True)
            if not is_correct
        ),
    )
    rows = [
        GridRow(f"{'' if is_correct else 'MISREAD  '}{prompt}", grid_images(mode, plan, layout, image))
        for is_correct, prompt, plan, layout, image in zip(
            correct, prompts, generated.glyph_maps, generated.layouts, generated.images, strict=True
        )
    ]
    return score, generated.images, rows


def grid_images(
    mode: GenerationMode, plan: np.ndarray | None, layout: Layout, image: Image.Image
) -> tuple[Image.Image, ...]:
    """What an image was generated from, and the image, in the order of `GRID_HEADS`."""
    plans = (glyph_map_image(plan),) if plan is not None and mode in ("refit", "raw") else ()
    layouts = () if mode in ("raw", "no layout") else (layout_image(layout, image.width),)
    return (*plans, *layouts, image)


def spelling_summary(metrics: dict[str, Any], run: Path) -> str:
    """The scores for a terminal, words with Wilson's 95 % interval."""
    lines = [f"{metrics['words']} held-out words, {metrics['engine']}, {metrics['protocol']}"]
    for mode, score in metrics["modes"].items():
        colours, positions = score["colours"], score["places"]
        # Without a layout nobody knows where the letters are, and no colour is measured.
        others = "".join(
            f"  {name} {colours[f'{name}s_right']:6.1%} (off by {colours[f'{name}_distance']:.0f})"
            for name in ("ground", "ink")
            if colours[f"{name}s_right"] is not None
        )
        if positions["places_right"] is not None:
            # Of the images in which anything was read.
            others += f"  place {positions['places_right']:6.1%} of {positions['places_named']}"
        low, high = wilson_interval(round(score["word_accuracy"] * score["words"]), score["words"])
        rate = score["words"] / score["sampling_seconds"]
        lines.append(
            f"{mode:12} words {score['word_accuracy']:6.1%} ({low:.1%} to {high:.1%})"
            f"  letters {score['letter_accuracy']:6.1%}{others}  {rate:.1f} images/s"
        )
        lines += misread_lines(score)
    return "\n".join([*lines, f"Images and grids: {run / 'evaluation'}"])


def misread_lines(score: dict[str, Any]) -> list[str]:
    """A line with the first misread words, target>OCR result; none where all are correct."""
    shown = ", ".join(f"{target}>{text or '-'}" for target, text in score["misread"][:MISREAD_SHOWN])
    return [f"             misread: {shown}"] if shown else []
