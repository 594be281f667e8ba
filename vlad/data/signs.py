"""Rendered signs: synthetic images with text, and the exact polygon of every line.

    options, seed, index -> words -> layout -> caption, image

A sample is a function of (options, seed, index) alone, so any share of a set can be rendered anywhere. About
2,000 samples a second and core at 64 pixels (`python tools/benchmark.py render`).
"""

from __future__ import annotations

import dataclasses
import string
from functools import cache

import numpy as np

from vlad.data.options import SyntheticOptions
from vlad.data.words import held_out_words, known_words, rare_words
from vlad.layout.glyph_map import render_line
from vlad.layout.polygons import box_polygon
from vlad.types import Layout, ObjectBox, Sample, TextLine

PALETTE: dict[str, tuple[int, int, int]] = {
    "black": (16, 16, 16),
    "white": (244, 244, 244),
    "red": (206, 32, 41),
    "green": (20, 122, 52),
    "blue": (28, 64, 190),
    "yellow": (250, 214, 20),
    "orange": (244, 126, 12),
    "purple": (118, 36, 148),
}
MINIMUM_CONTRAST = 3.0  # WCAG 2.2, "large text": below it the OCR engine misses text that is there
STYLE_FONTS = ("sans", "sans-bold", "serif", "serif-bold", "mono-bold")
ROWS = {"at the top": 0.22, "in the middle": 0.5, "at the bottom": 0.78}
COLUMNS = {"on the left": 0.0, "": 0.5, "on the right": 1.0}
# What carries the text, and the style of its background.
CARRIERS = {"sign": "plain", "card": "frame", "poster": "gradient", "wall": "speckle"}
MARGIN = 0.04
RENDERER_VERSION = 3  # rises when the same options give other samples: shards of an older version are made anew
LETTERS = string.ascii_uppercase


def relative_luminance(colour: tuple[int, int, int]) -> float:
    """WCAG's relative luminance of an sRGB colour, 0..1."""
    channels = np.array(colour) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


@cache
def readable_text_colours(background: str) -> tuple[str, ...]:
    """The colours of the palette with enough contrast to `background` to be read."""

    def contrast(a: str, b: str) -> float:
        darker, lighter = sorted((relative_luminance(PALETTE[a]), relative_luminance(PALETTE[b])))
        return (lighter + 0.05) / (darker + 0.05)

    return tuple(colour for colour in PALETTE if contrast(background, colour) >= MINIMUM_CONTRAST)


def _choose_string(rng: np.random.Generator, options: SyntheticOptions, words: tuple[str, ...]) -> str:
    if rng.random() >= options.random_string_share:
        return words[rng.integers(len(words))]
    held_out = set(held_out_words())
    while True:
        length = int(rng.integers(options.min_letters, options.max_letters + 1))
        alphabet = LETTERS + string.digits if rng.random() < options.digit_share else LETTERS
        text = "".join(alphabet[i] for i in rng.integers(len(alphabet), size=length))
        if text not in held_out and text not in rare_words():
            return text


def _place_lines(
    rng: np.random.Generator, options: SyntheticOptions, strings: list[str]
) -> tuple[list[TextLine], str, str]:
    """Lines with their polygons, and the words for their row and column ("" where there is no word for it)."""
    longest, lines = max(map(len, strings)), len(strings)
    cell = min(options.max_letter_width, (1 - 2 * MARGIN) / longest) * (1 - rng.random() * options.size_jitter)
    aspect = rng.uniform(options.min_letter_aspect, options.max_letter_aspect)
    pitch = 1.35  # from line to line, in line heights
    height = min(cell * aspect, (1 - 2 * MARGIN) / (1 + pitch * (lines - 1)))
    block = height * (1 + pitch * (lines - 1))
    width = cell * longest

    row = list(ROWS)[rng.integers(len(ROWS))]
    free_width = 1 - 2 * MARGIN - width
    # Left and right mean something only where there is room to move.
    column = list(COLUMNS)[rng.integers(len(COLUMNS))] if free_width > 0.25 else ""
    jitter = rng.uniform(-1, 1, size=2) * options.place_jitter
    top = np.clip(ROWS[row] - block / 2 + jitter[1], MARGIN, 1 - MARGIN - block)
    centre = np.clip(
        MARGIN + width / 2 + free_width * COLUMNS[column] + jitter[0], MARGIN + width / 2, 1 - MARGIN - width / 2
    )
    placed = []
    for index, text in enumerate(strings):
        line_top = float(top + index * pitch * height)
        half = cell * len(text) / 2
        placed.append(
            TextLine(text, box_polygon(float(centre - half), line_top, float(centre + half), line_top + height))
        )
    return placed, row, column


def _carrier_phrase(background: str, carrier: str) -> str:
    return f"{'an' if background[0] in 'aeiou' else 'a'} {background} {carrier}"


def _caption(carrier: str, colour: str | None, place: str, strings: list[str]) -> str:
    quoted = " and ".join(f'"{text}"' for text in strings)
    letters = f" in {colour} letters" if colour else ""
    return f"{carrier} that says {quoted}{letters}{' ' + place if place else ''}"


def _paint(rng: np.random.Generator, background: str, colour: str, style: str, coverage: np.ndarray) -> np.ndarray:
    """The image (H W 3, uint8): a background of the style, and text over it where `coverage` (H W, 0..1) says."""
    height, width = coverage.shape
    # A small shift of both colours keeps the model from learning eight exact values.
    background_rgb, text_rgb = (np.array(PALETTE[name]) + rng.normal(0, 4, 3) for name in (background, colour))
    canvas = np.broadcast_to(background_rgb, (height, width, 3)).astype(np.float32)
    if style == "gradient":
        canvas = canvas * np.linspace(1.08, 0.88, height, dtype=np.float32)[:, None, None]
    elif style == "speckle":
        canvas = canvas + rng.normal(0, 9, (height, width, 1)).astype(np.float32)
    elif style == "frame":
        frame = np.zeros((height, width), dtype=np.float32)
        inset = max(1, round(width / 64))
        frame[inset:-inset, inset:-inset] = 0.6
        frame[2 * inset : -2 * inset, 2 * inset : -2 * inset] = 0
        coverage = np.maximum(coverage, frame)
    image = canvas + coverage[..., None] * (text_rgb - canvas)
    return image.clip(0, 255).round().astype(np.uint8)


def render_sign(options: SyntheticOptions, index: int, words: tuple[str, ...] | None = None) -> Sample:
    """Sample number `index` of the set.

    With `words` the sign has one line with one of them, in turn; else lines of training words and random strings.
    """
    rng = np.random.default_rng((options.seed, index))
    if words is None:
        line_count = 1 + int(rng.choice(3, p=options.line_shares))
        known = known_words(options.min_letters, options.max_letters)
        strings = [_choose_string(rng, options, known) for _ in range(line_count)]
    else:
        strings = [words[index % len(words)]]
    background = list(PALETTE)[rng.integers(len(PALETTE))]
    colour = readable_text_colours(background)[rng.integers(len(readable_text_colours(background)))]
    carrier = list(CARRIERS)[rng.integers(1, len(CARRIERS))] if rng.random() < options.ground_share else "sign"
    lines, row, column = _place_lines(rng, options, strings)
    named_colour = colour if rng.random() < options.colour_named_share else None
    place = f"{row} {column}".strip() if rng.random() < options.place_named_share else ""
    font = STYLE_FONTS[rng.integers(len(STYLE_FONTS))]
    lines = [TextLine(line.text, line.polygon, "en", font, colour) for line in lines]

    ink_bytes = np.zeros((options.size_pixels, options.size_pixels), dtype=np.uint8)
    for line in lines:
        render_line(ink_bytes, line.text, line.polygon, font)
    return Sample(
        key=f"{index:08d}",
        image=_paint(rng, background, colour, CARRIERS[carrier], ink_bytes.astype(np.float32) / 255),
        caption=_caption(_carrier_phrase(background, carrier), named_colour, place, strings),
        layout=Layout(tuple(lines)),
        objects=(ObjectBox(_carrier_phrase(background, carrier), (0.0, 0.0, 1.0, 1.0)),),
        source="vlad.data.synthetic",  # the module's first name: existing shards hold it, and their bytes stay the same
        licence="CC0-1.0",
    )


HELD_OUT_SEED = 20_000  # no training set is rendered with it


def held_out_signs(options: SyntheticOptions, count: int) -> list[Sample]:
    """Signs like those of training, but with one line each, and with words that are never trained on."""
    single = dataclasses.replace(options, seed=HELD_OUT_SEED, line_shares=(1.0, 0.0, 0.0), count=count)
    words = tuple(word for word in held_out_words() if len(word) <= options.max_letters)
    return [render_sign(single, index, words) for index in range(count)]
