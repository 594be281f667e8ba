"""Accuracy of refit: lines of random layouts found again in glyph maps with the disturbances of a sampler.

layout -> glyph map -> disturbance -> refit -> lines found, strings on their own lines, polygon IoU
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from vlad.data.words import training_words
from vlad.layout.glyph_map import render_glyph_map
from vlad.layout.polygons import polygon_iou
from vlad.layout.reading_order import reading_order
from vlad.layout.refit import refit_layout
from vlad.types import Layout, Polygon, TextLine

KINDS = ("rows", "touching rows", "tilted block", "own angles", "side by side", "strings in another order")
DISTURBANCES = ("clean", "blurred and noisy", "wrong letters", "a line missing", "specks")
FOUND_IOU = 0.5  # least IoU of a found line
MARGIN = 0.03
TRIES = 400  # at a free place for a line


@dataclass(frozen=True)
class RefitScore:
    """Shares of lines found and of strings on their own line, and the mean IoU of those (0 for the others)."""

    layouts: int
    lines: int
    found: float
    matched: float
    iou: float


def generated_layout(index: int, kind: str) -> Layout:
    """Layout number `index` of a kind: 2 to 4 lines of words, in the order of the prompt."""
    rng = np.random.default_rng((0, index, KINDS.index(kind)))
    words = [word for word in training_words() if 3 <= len(word) <= 8]
    count = int(rng.integers(2, 5))
    texts = [words[rng.integers(len(words))] for _ in range(count)]
    place = {"own angles": _scattered, "side by side": _columns}.get(kind, _rows)
    tilt = 0.0
    if kind == "tilted block":
        tilt = float(rng.choice([-1, 1]) * rng.uniform(6, 35))
    lines = reading_order(place(rng, texts, 0.0 if kind == "touching rows" else float(rng.uniform(0.25, 0.9)), tilt))
    if kind == "strings in another order":
        lines = tuple(lines[i] for i in rng.permutation(len(lines)))
    return Layout(tuple(lines))


def disturbed(layout: Layout, pixels: int, disturbance: str, seed: int) -> np.ndarray:
    """The layout's glyph map (H W, 0..1) as a sampler might generate it."""
    rng = np.random.default_rng((seed, DISTURBANCES.index(disturbance)))
    lines = list(layout.lines)
    if disturbance == "wrong letters":
        letters = list(string.ascii_uppercase)
        lines = [TextLine("".join(rng.choice(letters, len(line.text))), line.polygon) for line in lines]
    if disturbance == "a line missing":
        lines.pop(int(rng.integers(len(lines))))
    glyph_map = render_glyph_map(Layout(tuple(lines)), pixels, pixels)
    if disturbance == "blurred and noisy":
        blurred = cv2.GaussianBlur(glyph_map, (0, 0), pixels / 128)
        glyph_map = blurred * rng.uniform(0.75, 1.0) + rng.normal(0, 0.06, glyph_map.shape)
    if disturbance == "specks":
        for x, y in rng.integers(0, pixels, (12, 2)):
            glyph_map[y : y + 2, x : x + 2] = 1
    return np.clip(glyph_map, 0, 1).astype(np.float32)


def score_refit(
    count: int,
    kinds: Sequence[str] = KINDS,
    disturbance: str = "clean",
    pixels: int = 128,
    refit: Callable[[np.ndarray, Sequence[str]], Layout] = refit_layout,
) -> RefitScore:
    """Scores `count` layouts, the kinds in turn."""
    found = matched = lines = 0
    overlaps = 0.0
    for index in range(count):
        layout = generated_layout(index, kinds[index % len(kinds)])
        strings = [line.text for line in layout.lines]
        read = refit(disturbed(layout, pixels, disturbance, index), strings)
        lines += len(strings)
        for true, own in zip(layout.lines, read.lines, strict=True):
            found += any(polygon_iou(true.polygon, line.polygon) > FOUND_IOU for line in read.lines)
            overlap = polygon_iou(true.polygon, own.polygon)
            if overlap > FOUND_IOU:
                matched += 1
                overlaps += overlap
    return RefitScore(count, lines, found / lines, matched / lines, overlaps / lines)


def print_refit_scores(count: int) -> None:
    """Prints the scores of about `count` layouts for each disturbance, kind by kind and together."""
    each = -(-count // len(KINDS))
    print(f"{each * len(KINDS)} layouts of 2 to 4 lines a disturbance, maps of 128 x 128: found, matched, mean IoU")
    for disturbance in DISTURBANCES:
        print(disturbance)
        scores = [score_refit(each, (kind,), disturbance) for kind in KINDS]
        lines = sum(score.lines for score in scores)
        found, matched, iou = (
            sum(getattr(score, name) * score.lines for score in scores) / lines for name in ("found", "matched", "iou")
        )
        for kind, score in zip(KINDS, scores, strict=True):
            print(f"  {kind:26}{score.found:8.1%}{score.matched:8.1%}{score.iou:7.3f}")
        print(f"  {'all':26}{found:8.1%}{matched:8.1%}{iou:7.3f}")


def _box(centre: tuple[float, float], width: float, height: float, degrees: float) -> Polygon:
    angle = math.radians(degrees)
    along, down = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    points = [np.array(centre) + x * width / 2 * along + y * height / 2 * down for x, y in corners]
    return tuple((float(x), float(y)) for x, y in points)


def _rows(rng: np.random.Generator, texts: Sequence[str], gap: float, tilt: float) -> list[TextLine]:
    """Lines under each other, `gap` line heights apart, the block tilted around its middle."""
    while True:
        height = rng.uniform(0.08, 0.2)
        cell = height / rng.uniform(1.1, 1.7)
        sizes = rng.uniform(0.85, 1.15, len(texts)) if gap else np.ones(len(texts))
        pitch = height * (1 + gap)
        centre = rng.uniform(0.3, 0.7, 2)
        angle = math.radians(tilt)
        lines = []
        for number, (text, size) in enumerate(zip(texts, sizes, strict=True)):
            down = (number - (len(texts) - 1) / 2) * pitch
            middle = centre[0] - down * math.sin(angle), centre[1] + down * math.cos(angle)
            lines.append(TextLine(text, _box(middle, cell * len(text) * size, height * size, tilt)))
        if all(map(_inside, lines)):
            return lines


def _columns(rng: np.random.Generator, texts: Sequence[str], gap: float, tilt: float) -> list[TextLine]:
    """Lines in two columns: the first two beside each other, then the next."""
    while True:
        height = rng.uniform(0.07, 0.14)
        cell = min(height / rng.uniform(1.1, 1.7), 0.4 / max(map(len, texts)))
        top = rng.uniform(0.1, 0.6)
        lines = []
        for number, text in enumerate(texts):
            width = cell * len(text)
            side = 0.05 + 0.5 * (number % 2) + rng.uniform(0, 0.42 - width) if width < 0.42 else 2.0
            centre = side + width / 2, top + (number // 2) * height * (1.3 + gap) + height / 2
            lines.append(TextLine(text, _box(centre, width, height, 0.0)))
        if all(map(_inside, lines)):
            return lines


def _scattered(rng: np.random.Generator, texts: Sequence[str], gap: float, tilt: float) -> list[TextLine]:
    """Lines of random sizes and angles wherever there is room."""
    while True:
        lines: list[TextLine] = []
        for text in texts:
            for _ in range(TRIES):
                height = rng.uniform(0.07, 0.14)
                width = height / rng.uniform(1.1, 1.7) * len(text)
                line = TextLine(text, _box(tuple(rng.uniform(0.1, 0.9, 2)), width, height, float(rng.uniform(-35, 35))))
                if _inside(line) and all(_apart(line, other, 0.3 * height) for other in lines):
                    lines.append(line)
                    break
        if len(lines) == len(texts):
            return lines


def _inside(line: TextLine) -> bool:
    return all(MARGIN <= value <= 1 - MARGIN for point in line.polygon for value in point)


def _apart(a: TextLine, b: TextLine, least: float) -> bool:
    """Whether two convex quads are at least `least` apart."""
    masks = []
    for line in (a, b):
        mask = np.zeros((200, 200), dtype=np.uint8)
        cv2.fillPoly(mask, [np.rint(np.array(line.polygon) * 200).astype(np.int32)], 1)
        masks.append(mask)
    reach = 2 * math.ceil(least * 200) + 1
    return not np.logical_and(cv2.dilate(masks[0], np.ones((reach, reach), np.uint8)), masks[1]).any()
