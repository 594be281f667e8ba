"""Does an edit spell, and is the rest left alone? Words of held-out signs replaced by others, and read.

    sign -> mask over its word and the room of another -> the other word drawn there -> OCR

The other word has the first one's letters in size and its centre; the prompt says the word and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlad.layout.masks import Edit, mask_of_lines
from vlad.layout.polygons import bounding_box, box_polygon
from vlad.metrics.ocr import run_ocr
from vlad.metrics.spelling import letter_accuracy, ocr_text, spells_exactly
from vlad.models.text_encoder.prompt import plain_prompt
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.reports.image_grids import GridRow, overlay
from vlad.types import Layout, Sample, TextLine

MARGIN = 0.04  # of the image: a longer word stays so far from its edges


@dataclass(frozen=True)
class Replacement:
    """A sign whose word gives way to another: what is drawn anew, and the line that is wanted there."""

    edit: Edit
    layout: Layout


@dataclass(frozen=True)
class EditScore:
    """Edits whose image reads as the new word, letters right, pixels outside the masks that changed, time for all."""

    words: int
    word_accuracy: float
    letter_accuracy: float
    pixels_changed_outside: int
    mean_mask_share: float
    sampling_seconds: float
    misread: tuple[tuple[str, str], ...]  # wanted, read


def replacements(signs: list[Sample]) -> list[Replacement]:
    """The word of each sign (of one line) replaced by the next sign's that is another."""
    words = [sign.layout.lines[0].text for sign in signs]
    made = []
    for number, sign in enumerate(signs):
        following = words[number + 1 :] + words[:number]
        new = next(word for word in following if word != words[number])
        line = _in_place_of(sign.layout.lines[0], new)
        height, width = sign.image.shape[:2]
        mask = mask_of_lines([sign.layout.lines[0], line], width, height)
        made.append(Replacement(Edit(sign.image, mask), Layout((line,))))
    return made


def _in_place_of(line: TextLine, text: str) -> TextLine:
    """Another text with letters of the line's size about its centre, moved and narrowed where the image ends."""
    left, top, right, bottom = bounding_box(line.polygon)
    half = min((right - left) / len(line.text) * len(text), 1 - 2 * MARGIN) / 2
    centre = min(max((left + right) / 2, MARGIN + half), 1 - MARGIN - half)
    return TextLine(text, box_polygon(centre - half, top, centre + half, bottom))


def score_editing(
    pipeline: VLADPipeline,
    signs: list[Sample],
    engine: str = "rapidocr",
    on_progress: Callable[[int], None] | None = None,
) -> tuple[EditScore, list[Image.Image], list[GridRow]]:
    """Replaces the words of signs of one size and reads the results; also the images, and rows for a grid of all.

    Raises UserError for a pipeline that does not edit.
    """
    made = replacements(signs)
    wanted = [[line.text for line in one.layout.lines] for one in made]
    started = time.monotonic()
    drawn = pipeline(
        [plain_prompt(strings) for strings in wanted],
        list(range(len(made))),
        [one.layout for one in made],
        image=[one.edit.image for one in made],
        mask_image=[one.edit.mask for one in made],
    )
    seconds = time.monotonic() - started
    images = [np.asarray(result) for result in drawn.images]
    readings = list(run_ocr(engine, images, on_progress=on_progress))
    changed = sum(
        int(((image != one.edit.image).any(axis=-1) & ~one.edit.mask).sum())
        for image, one in zip(images, made, strict=True)
    )
    right = [spells_exactly(lines, strings) for lines, strings in zip(readings, wanted, strict=True)]
    score = EditScore(
        words=len(made),
        word_accuracy=float(np.mean(right)),
        letter_accuracy=letter_accuracy(readings, wanted),
        pixels_changed_outside=changed,
        mean_mask_share=float(np.mean([one.edit.mask.mean() for one in made])),
        sampling_seconds=seconds,
        misread=tuple(
            (strings[0], ocr_text(lines)) for lines, strings, ok in zip(readings, wanted, right, strict=True) if not ok
        ),
    )
    rows = [
        GridRow(
            f"{'' if ok else 'MISREAD  '}{sign.layout.lines[0].text} > {strings[0]}",
            (Image.fromarray(sign.image), overlay(_masked(one.edit), one.layout), result),
        )
        for ok, sign, strings, one, result in zip(right, signs, wanted, made, drawn.images, strict=True)
    ]
    return score, drawn.images, rows


def _masked(edit: Edit) -> Image.Image:
    """The image with grey in the mask's place: what the model is given."""
    return Image.fromarray(np.where(edit.mask[..., None], np.uint8(127), edit.image))
