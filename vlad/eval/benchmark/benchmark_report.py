"""report.html of a benchmark: metrics, what they rest on, the breakdown, and images with target text and OCR result."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vlad.eval.benchmark.breakdown import draw_breakdown
from vlad.eval.benchmark.evaluator import Evaluation, GalleryImage
from vlad.eval.image_files import load_image
from vlad.eval.protocols.protocol import SCORING_MODES
from vlad.layout.reading_order import reading_order
from vlad.utils.html import render, write_page

TEMPLATE = Path(__file__).with_suffix(".html")
CARD_PIXELS = 224
MOST_FAULTS = 50  # missing images that the page names; metrics.json names all


@dataclass(frozen=True)
class Card:
    """An image of the galleries as the page shows it."""

    name: str
    jpeg: bytes
    prompt: str
    target: str
    read: str
    score: float


def write_report(path: Path, result: Evaluation, title: str, rests_on: Sequence[tuple[str, str]]) -> None:
    """Writes the page, one file with its images in it, and the breakdown as breakdown.png beside it."""
    plot = None
    if result.breakdown.strings:
        plot_file = path.with_name("breakdown.png")
        draw_breakdown(result.breakdown, plot_file)
        plot = plot_file.read_bytes()
    missing, unreadable = result.missing, result.unreadable
    page = render(
        TEMPLATE,
        title=title,
        result=result,
        faults=[*(f"missing: {name}" for name in missing), *(f"unreadable: {name}" for name in unreadable)],
        most_faults=MOST_FAULTS,
        modes=SCORING_MODES,
        rests_on=rests_on,
        plot=plot,
        galleries={name: list(map(_card, images)) for name, images in result.galleries.items()},
    )
    write_page(path, page)


def _card(shown: GalleryImage) -> Card:
    target = " | ".join(shown.image.prompt.strings) or "nothing"
    read = " | ".join(line.text for line in reading_order(shown.ocr.result.lines)) or "nothing"
    return Card(shown.image.name, _jpeg(shown), shown.image.prompt.text, target, read, shown.score)


def _jpeg(shown: GalleryImage) -> bytes:
    assert shown.image.path is not None
    image = Image.fromarray(load_image(shown.image.path))
    scale = CARD_PIXELS / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
