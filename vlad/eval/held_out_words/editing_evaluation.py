"""Word editing: words of held-out signs are replaced by others and read; the rest of the image must stay as it is.

    sign -> mask over its word and the other word's extent -> the other word generated inside -> OCR

The other word has the first one's letter size and centre; the prompt says the word and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from vlad.config.load import load_config
from vlad.data.signs import held_out_signs
from vlad.eval.held_out_words.spelling_evaluation import GRID_COLUMNS, GRID_ROWS, misread_lines
from vlad.inference.load_pipeline import load_pipeline
from vlad.layout.image_edits import Edit
from vlad.layout.masks import lines_mask
from vlad.layout.polygons import bounding_box, box_polygon
from vlad.metrics.ocr import build_ocr_engine, run_ocr
from vlad.metrics.spelling import letter_accuracy, ocr_text, spells_exactly
from vlad.models.text_encoder.prompt import plain_prompt
from vlad.pipeline.edits import check_can_edit
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.reports.image_grids import GridRow, overlay_polygons, sample_grid
from vlad.types import Layout, Sample, TextLine
from vlad.utils.atomic_files import write_json
from vlad.utils.errors import UserError
from vlad.utils.paths import existing_file, writable_directory

MARGIN = 0.04  # of the image: the least distance of a word from its edges


@dataclass(frozen=True)
class Replacement:
    """An edit of a sign's word: the image with its mask, and the line that replaces the word."""

    edit: Edit
    layout: Layout


@dataclass(frozen=True)
class EditScore:
    """Accuracies (0..1) of the new words, pixels outside the masks that changed, and the time for all edits."""

    words: int
    word_accuracy: float
    letter_accuracy: float
    pixels_changed_outside: int
    mean_mask_share: float
    sampling_seconds: float
    misread: tuple[tuple[str, str], ...]  # target text, OCR result


def replacements(signs: list[Sample]) -> list[Replacement]:
    """The word of each sign (of one line) replaced by that of the next sign with another word."""
    words = [sign.layout.lines[0].text for sign in signs]
    edits = []
    for number, sign in enumerate(signs):
        following = words[number + 1 :] + words[:number]
        other = next(word for word in following if word != words[number])
        line = _replacement_line(sign.layout.lines[0], other)
        height, width = sign.image.shape[:2]
        mask = lines_mask([sign.layout.lines[0], line], width, height)
        edits.append(Replacement(Edit(sign.image, mask), Layout((line,))))
    return edits


def _replacement_line(line: TextLine, text: str) -> TextLine:
    """Another text in the line's letter size at its centre, moved and narrowed to fit the image."""
    left, top, right, bottom = bounding_box(line.polygon)
    half = min((right - left) / len(line.text) * len(text), 1 - 2 * MARGIN) / 2
    centre = min(max((left + right) / 2, MARGIN + half), 1 - MARGIN - half)
    return TextLine(text, box_polygon(centre - half, top, centre + half, bottom))


def evaluate_editing(run: Path, count: int, engine: str = "rapidocr") -> dict[str, Any]:
    """Replaces the words of held-out signs: writes RUN/evaluation/editing* and returns the metrics.

    Raises UserError for a run that was not trained to edit.
    """
    engine_name = build_ocr_engine(engine).name
    config = load_config(existing_file(run / "config.yaml", "config", "name a run directory that train.py made"))
    if config.data.posters is not None:
        raise UserError(f"{run} trains on posters; --editing replaces the words of rendered signs, so leave it out.")
    pipeline = load_pipeline(run)
    check_can_edit(pipeline.config.edits)
    out = run / "evaluation"
    folder = writable_directory(out / "editing", "the evaluation", needed_bytes=20_000_000)
    signs = held_out_signs(config.data.synthetic, count)
    with tqdm(total=count, desc="scoring, editing", unit="image") as bar:
        score, images, rows = score_editing(pipeline, signs, engine, lambda done: bar.update(done - bar.n))
    for number, image in enumerate(images):
        image.save(folder / f"{number:04d}.png")
    grid = sample_grid(rows[:GRID_ROWS], ("image", "mask, line", "edited"), cell_pixels=128, columns=GRID_COLUMNS)
    grid.save(out / "editing.png")
    metrics = {"engine": engine_name, **asdict(score)}
    write_json(out / "editing.json", metrics)
    return metrics


def score_editing(
    pipeline: VLADPipeline,
    signs: list[Sample],
    engine: str = "rapidocr",
    on_progress: Callable[[int], None] | None = None,
) -> tuple[EditScore, list[Image.Image], list[GridRow]]:
    """Replaces the words of signs of one size and reads the results; also the images, and rows for a grid of all.

    Raises UserError for a pipeline that was not trained to edit.
    """
    edits = replacements(signs)
    targets = [[line.text for line in new.layout.lines] for new in edits]
    started = time.monotonic()
    generated = pipeline(
        [plain_prompt(strings) for strings in targets],
        list(range(len(edits))),
        [new.layout for new in edits],
        image=[new.edit.image for new in edits],
        mask_image=[new.edit.mask for new in edits],
    )
    seconds = time.monotonic() - started
    images = [np.asarray(result) for result in generated.images]
    results = list(run_ocr(engine, images, on_progress=on_progress))
    changed = sum(
        int(((image != new.edit.image).any(axis=-1) & ~new.edit.mask).sum())
        for image, new in zip(images, edits, strict=True)
    )
    correct = [spells_exactly(lines, strings) for lines, strings in zip(results, targets, strict=True)]
    score = EditScore(
        words=len(edits),
        word_accuracy=float(np.mean(correct)),
        letter_accuracy=letter_accuracy(results, targets),
        pixels_changed_outside=changed,
        mean_mask_share=float(np.mean([new.edit.mask.mean() for new in edits])),
        sampling_seconds=seconds,
        misread=tuple(
            (strings[0], ocr_text(lines))
            for lines, strings, is_correct in zip(results, targets, correct, strict=True)
            if not is_correct
        ),
    )
    rows = [
        GridRow(
            f"{'' if is_correct else 'MISREAD  '}{sign.layout.lines[0].text} > {strings[0]}",
            (Image.fromarray(sign.image), overlay_polygons(_masked(new.edit), new.layout), result),
        )
        for is_correct, sign, strings, new, result in zip(correct, signs, targets, edits, generated.images, strict=True)
    ]
    return score, generated.images, rows


def _masked(edit: Edit) -> Image.Image:
    """The image with grey in the mask's place: what the model is given."""
    return Image.fromarray(np.where(edit.mask[..., None], np.uint8(127), edit.image))


def editing_summary(metrics: dict[str, Any], run: Path) -> str:
    """The scores for a terminal."""
    lines = [
        f"{metrics['words']} words of held-out signs replaced by others, read by {metrics['engine']}; masks cover"
        f" {metrics['mean_mask_share']:.1%} of an image",
        f"editing      words {metrics['word_accuracy']:6.1%}  letters {metrics['letter_accuracy']:6.1%}"
        f"  {metrics['pixels_changed_outside']} pixels changed outside the masks"
        f"  {metrics['words'] / metrics['sampling_seconds']:.1f} images/s",
        *misread_lines(metrics),
        f"Images and grid: {run / 'evaluation'}",
    ]
    return "\n".join(lines)
