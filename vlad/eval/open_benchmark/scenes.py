"""Scenes of the open benchmark: boards with lines of text and plain shapes, sampled by seed, rendered bit for bit."""

from __future__ import annotations

import hashlib
import string
from dataclasses import dataclass, field

import numpy as np

from vlad.data.posters.captions import with_article
from vlad.data.signs import PALETTE, readable_text_colours
from vlad.data.words import held_out_words, training_words
from vlad.eval.alignment.alignment_prompts import AlignmentTexts
from vlad.eval.options import Box, OpenBenchmarkOptions
from vlad.layout.glyph_map import render_line
from vlad.layout.polygons import box_polygon
from vlad.types import Layout, TextLine

VERSION = 1  # to be raised with every change of what the same options make
FONTS = ("sans-bold", "serif-bold", "mono-bold")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
CARRIERS = ("sign", "card", "poster", "label", "banner")
LETTER_ASPECT = 1.5  # height of a line over the width of its letters' cells
LINE_PITCH = 1.3


@dataclass(frozen=True)
class Carrier:
    """A coloured board with lines of text in one colour and font.

    One whose kind is among SHAPES is that shape without text, as large as the box's shorter side, in its middle.
    """

    kind: str
    background: str
    text_colour: str
    box: Box
    lines: tuple[TextLine, ...]


@dataclass(frozen=True)
class Scene:
    """One entry of the benchmark, before it is rendered."""

    key: str
    subset: str
    prompt: str
    backdrop: str
    carriers: tuple[Carrier, ...]
    texts: AlignmentTexts = field(default_factory=AlignmentTexts)

    @property
    def layout(self) -> Layout:
        """All lines, in the prompt's order."""
        return Layout(tuple(line for carrier in self.carriers for line in carrier.lines))


class SceneSampler:
    """Random choices of one scene, a function of seed, split, subset and index; words of its split."""

    def __init__(self, options: OpenBenchmarkOptions, subset: str, index: int) -> None:
        entropy = f"{VERSION}:{options.seed}:{options.split}:{subset}:{index}"
        self.rng = np.random.default_rng(list(hashlib.sha256(entropy.encode()).digest()))
        self.split = options.split
        self.pool = held_out_words() if options.split == "test" else training_words()

    def choice(self, options: tuple[str, ...]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def choices(self, options: tuple[str, ...], count: int) -> list[str]:
        return [options[int(i)] for i in self.rng.choice(len(options), size=count, replace=False)]

    def words(self, count: int) -> list[str]:
        """Words of the split, none twice."""
        return self.choices(self.pool, count)

    def digits(self, count: int) -> str:
        return "".join(self.choice(tuple(string.digits)) for _ in range(count))

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))


def set_lines(
    sampler: SceneSampler, box: Box, texts: list[str], height: float, language: str = "en"
) -> tuple[TextLine, ...]:
    """The texts under one another in the middle of the box, lines `height` high or as high as fits."""
    left, top, right, bottom = box
    width, room = 0.9 * (right - left), 0.86 * (bottom - top)
    longest = max(map(len, texts))
    height = min(height, LETTER_ASPECT * width / longest, room / (1 + LINE_PITCH * (len(texts) - 1)))
    first = (top + bottom) / 2 - height * (1 + LINE_PITCH * (len(texts) - 1)) / 2
    font, middle = sampler.choice(FONTS), (left + right) / 2
    lines = []
    for number, text in enumerate(texts):
        half = len(text) * height / LETTER_ASPECT / 2
        line_top = first + number * LINE_PITCH * height
        lines.append(
            TextLine(text, box_polygon(middle - half, line_top, middle + half, line_top + height), language, font)
        )
    return tuple(lines)


def board(
    sampler: SceneSampler,
    texts: list[str],
    box: Box = (0.08, 0.12, 0.92, 0.88),
    height: float = 0.2,
    background: str | None = None,
    language: str = "en",
) -> Carrier:
    """A board of the texts, in colours of which the letters stand out."""
    background = background or sampler.choice(tuple(PALETTE))
    text_colour = sampler.choice(readable_text_colours(background))
    kind = sampler.choice(CARRIERS)
    return Carrier(kind, background, text_colour, box, set_lines(sampler, box, texts, height, language))


def named(carrier: Carrier) -> str:
    """A carrier as prompts name it."""
    return with_article(f"{carrier.background} {carrier.kind}")


def _shape_mask(kind: str, height: int, width: int) -> np.ndarray:
    """The pixels of its box (H W) that a carrier covers: all, or those of its shape."""
    if kind not in SHAPES:
        return np.ones((height, width), dtype=bool)
    half = min(height, width) / 2
    v = (np.arange(height)[:, None] + 0.5 - height / 2) / half  # -1..1, downwards
    u = np.abs((np.arange(width)[None] + 0.5 - width / 2) / half)
    radius = u * u + v * v
    return {
        "circle": radius <= 1,
        "square": np.maximum(u, np.abs(v)) <= 0.85,
        "triangle": (v <= 0.85) & (u <= (v + 1) / 1.85),
        "diamond": u + np.abs(v) <= 1,
        "cross": (np.minimum(u, np.abs(v)) <= 0.3) & (np.maximum(u, np.abs(v)) <= 1),
        "ring": (radius <= 1) & (radius >= 0.36),
    }[kind]


def render_scene(scene: Scene, size_pixels: int) -> np.ndarray:
    """The reference image (H W 3, uint8)."""
    canvas = np.empty((size_pixels, size_pixels, 3), dtype=np.float32)
    # Darker below, so that no two rows are alike.
    shade = np.linspace(1.0, 0.75, size_pixels, dtype=np.float32)[:, None, None]
    canvas[:] = np.array(PALETTE[scene.backdrop], dtype=np.float32) * 0.6 * shade + 60
    for carrier in scene.carriers:
        left, top, right, bottom = (round(value * size_pixels) for value in carrier.box)
        board = canvas[top:bottom, left:right]
        board[_shape_mask(carrier.kind, bottom - top, right - left)] = PALETTE[carrier.background]
        glyphs = np.zeros((size_pixels, size_pixels), dtype=np.uint8)
        for line in carrier.lines:
            render_line(glyphs, line.text, line.polygon, line.font or FONTS[0])
        coverage = glyphs[..., None].astype(np.float32) / 255
        canvas += coverage * (np.array(PALETTE[carrier.text_colour], dtype=np.float32) - canvas)
    return canvas.clip(0, 255).round().astype(np.uint8)
