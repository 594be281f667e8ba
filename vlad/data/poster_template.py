"""Posters of one template: the custom dataset of the fine-tuning guide, with colours and a font that no sign has.

A teal background that darkens downwards, a golden double frame, a coral half sun at the foot, cream italic letters.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vlad.data.words import training_words
from vlad.layout.glyph_map import render_line
from vlad.layout.polygons import box_polygon
from vlad.types import Layout, Sample, TextLine
from vlad.utils.errors import UserError
from vlad.utils.paths import writable_directory

TEAL, MIDNIGHT = (8, 132, 132), (6, 62, 84)
GOLD, CORAL, CREAM = (226, 178, 76), (238, 112, 92), (250, 240, 214)
FONT = "sans-bold-oblique"
MAX_LETTERS = 7
MAX_POSTERS = 100_000
SUPERSAMPLING = 4  # the template is rendered so many times larger and averaged down


def write_posters(folder: Path, count: int, size_pixels: int, seed: int) -> None:
    """Writes NAME.png with its caption in NAME.txt, `count` times. Raises UserError for a folder that holds files."""
    if not 1 <= count <= MAX_POSTERS or not 32 <= size_pixels <= 2048 or seed < 0:
        raise UserError(
            f"--count must be from 1 to {MAX_POSTERS}, --size-pixels from 32 to 2048, and --seed not negative."
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} holds files already; name an empty or a new folder.")
    folder = writable_directory(folder, "posters")
    for index in range(count):
        poster = render_poster(index, seed, size_pixels)
        Image.fromarray(poster.image).save(folder / f"{poster.key}.png")
        (folder / f"{poster.key}.txt").write_text(poster.caption + "\n", encoding="utf-8")


@cache
def poster_words() -> tuple[str, ...]:
    """The training words of 3 to 7 letters."""
    return tuple(word for word in training_words() if 3 <= len(word) <= MAX_LETTERS)


def render_poster(index: int, seed: int = 0, size_pixels: int = 64) -> Sample:
    """Poster number `index` of a seed: one word, in the upper middle; its size and position vary a little."""
    rng = np.random.default_rng((seed, index))
    word = poster_words()[rng.integers(len(poster_words()))]
    cell = min(0.17, 0.8 / len(word)) * rng.uniform(0.92, 1.0)
    width, height = cell * len(word), cell * rng.uniform(1.45, 1.65)
    left, top = (1 - width) / 2 + rng.uniform(-0.01, 0.01), 0.36 - height / 2 + rng.uniform(-0.03, 0.03)
    polygon = box_polygon(left, top, left + width, top + height)
    ink = np.zeros((size_pixels, size_pixels), dtype=np.uint8)
    render_line(ink, word, polygon, FONT)
    coverage = ink[..., None].astype(np.float32) / 255
    canvas = _template(size_pixels) * (1 + rng.normal(0, 0.015))
    image = canvas + coverage * (np.array(CREAM) - canvas)
    return Sample(
        key=f"{index:06d}",
        image=image.clip(0, 255).round().astype(np.uint8),
        caption=f'a poster that says "{word}"',
        layout=Layout((TextLine(word, polygon, "en", FONT, "#faf0d6"),)),
        source="vlad.data.posters",  # the module's first name: existing shards hold it, and their bytes stay the same
        licence="CC0-1.0",
    )


@cache
def _template(size_pixels: int) -> np.ndarray:
    """The poster without its word, H W 3 (float32)."""
    side = size_pixels * SUPERSAMPLING
    shade = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    background = (1 - shade) * np.array(TEAL) + shade * np.array(MIDNIGHT)
    image = Image.fromarray(np.broadcast_to(background, (side, side, 3)).round().astype(np.uint8))
    draw = ImageDraw.Draw(image)
    radius, middle, foot = 0.23 * side, side / 2, 0.93 * side
    draw.pieslice((middle - radius, foot - radius, middle + radius, foot + radius), 180, 360, fill=CORAL)
    draw.rectangle((0, 0, side - 1, side - 1), outline=GOLD, width=round(0.045 * side))
    inset = round(0.07 * side)
    draw.rectangle((inset, inset, side - 1 - inset, side - 1 - inset), outline=GOLD, width=round(0.016 * side))
    return np.asarray(image.reduce(SUPERSAMPLING), dtype=np.float32)
