"""Cards: samples with their polygons and texts drawn over the image, alone and as a contact sheet."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from vlad.data.lint.sample_checks import line_faults
from vlad.layout.fonts import load_font, missing_glyphs
from vlad.types import Sample

CARD_PIXELS = 320  # of the longer side
LABEL_PIXELS = 13
COLOURS = {"sound": (60, 230, 90), "ignored": (190, 190, 190), "faulty": (255, 70, 70)}


@dataclass(frozen=True)
class Card:
    """A sample's annotated image (JPEG) with its texts. Of sound samples the cards of lowest `rank` are kept."""

    shard: str
    key: str
    jpeg: bytes
    caption: str
    lines: tuple[str, ...]
    faults: tuple[tuple[str, str], ...]
    rank: float


def draw_card(sample: Sample, shard: str, faults: tuple[tuple[str, str], ...], rank: float) -> Card:
    """The sample's image with every line's polygon: green if sound, grey if ignored, red if faulty."""
    image = Image.fromarray(sample.image)
    scale = CARD_PIXELS / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    # Small signs keep visible pixels; photographs shrink smoothly.
    image = image.resize(size, Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(image)
    # A polygon may lie anywhere; far outside it cannot be seen.
    rings = [np.clip(np.array(line.polygon), -1, 2) * (size[0] - 1, size[1] - 1) for line in sample.layout.lines]
    taken = np.zeros((2 * len(rings), 4))  # boxes of the lines, then of the labels
    for row, ring in enumerate(rings):
        taken[row] = *ring.min(axis=0), *ring.max(axis=0)
    for number, (line, ring) in enumerate(zip(sample.layout.lines, rings, strict=True), start=1):
        state = "faulty" if any(line_faults(line)) else "sound" if line.valid else "ignored"
        closed = [(float(x), float(y)) for x, y in (*ring, ring[0])]
        draw.line(closed, fill=(0, 0, 0), width=5, joint="curve")
        draw.line(closed, fill=COLOURS[state], width=3, joint="curve")
        free = len(rings) + number - 1
        taken[free] = _draw_label(draw, line.text, number, ring, taken[:free], size, COLOURS[state])
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    lines = tuple(
        line.text + ("" if line.valid else " (not legible)") + (f" [{line.language}]" if line.language else "")
        for line in sample.layout.lines
    )
    return Card(shard, sample.key, buffer.getvalue(), sample.caption, lines, faults, rank)


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _draw_label(
    draw: ImageDraw.ImageDraw,
    text: str,
    number: int,
    ring: np.ndarray,
    taken: np.ndarray,
    size: tuple[int, int],
    colour: tuple[int, int, int],
) -> Box:
    """Labels a polygon with its line's number and text where that overlaps `taken` least; returns the label's box."""
    font = load_font("sans", LABEL_PIXELS)
    (left, top), (right, bottom) = ring.min(axis=0).tolist(), ring.max(axis=0).tolist()
    height = LABEL_PIXELS + 4
    # The number alone if the text would cover other lines or has characters that the font lacks.
    labels = (
        [f"{number} {text.strip()}"[:40]]
        if text.strip() and text.isprintable() and not missing_glyphs(text, "sans")
        else []
    )
    best: tuple[float, str, Box] | None = None
    for label in (*labels, str(number)):
        width = draw.textlength(label, font) + 6
        places = (
            *(
                (left, top - height - 2),
                (left, bottom + 3),
                (right - width, top - height - 2),
                (right - width, bottom + 3),
            ),
            *((right + 3, top), (left - width - 3, top), (left, top)),
        )
        for place in places:
            x = float(min(max(0.0, place[0]), max(0.0, size[0] - width)))
            y = float(min(max(0.0, place[1]), max(0.0, size[1] - height)))
            box = (x, y, x + width, y + height)
            covered = _overlap(box, taken)
            if best is None or covered < best[0] - 1:
                best = covered, label, box
        if best is not None and best[0] < 1:
            break
    assert best is not None
    _, label, box = best
    draw.rectangle(box, fill=(0, 0, 0))
    draw.text((box[0] + 3, box[1] + 1), label, colour, font)
    return box


def _overlap(box: Box, others: np.ndarray) -> float:
    """The area that a box shares with each of the others (N 4), added up."""
    widths = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    heights = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    return float((widths.clip(min=0) * heights.clip(min=0)).sum())


def contact_sheet(cards: Sequence[Card], columns: int = 5, cell_pixels: int = 240) -> Image.Image:
    """All cards in one image, each in a square cell above its key."""
    rows = math.ceil(len(cards) / columns)
    columns = min(columns, len(cards))
    foot = LABEL_PIXELS + 6
    sheet = Image.new("RGB", (columns * (cell_pixels + 8) + 8, rows * (cell_pixels + foot + 8) + 8), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for number, card in enumerate(cards):
        left = 8 + number % columns * (cell_pixels + 8)
        top = 8 + number // columns * (cell_pixels + foot + 8)
        with Image.open(io.BytesIO(card.jpeg)) as image:
            image.thumbnail((cell_pixels, cell_pixels), Image.Resampling.LANCZOS)
            sheet.paste(image, (left + (cell_pixels - image.width) // 2, top + (cell_pixels - image.height) // 2))
        key = "".join(character for character in card.key if character.isprintable())[-24:]
        draw.text((left, top + cell_pixels + 2), key, (60, 60, 60), load_font("sans", LABEL_PIXELS - 2))
    return sheet
