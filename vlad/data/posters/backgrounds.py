"""Backgrounds of posters: H W 3 (float32, 0..255) of a named colour, plain or with a texture; or crops of photographs.

Some are held out of training sets, to measure letters on backgrounds that a model has never seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vlad.utils.errors import UserError

PALETTE: dict[str, tuple[int, int, int]] = {
    "black": (20, 20, 22),
    "white": (246, 246, 244),
    "grey": (128, 130, 134),
    "red": (204, 34, 40),
    "green": (24, 120, 58),
    "blue": (30, 72, 190),
    "yellow": (250, 212, 30),
    "orange": (244, 128, 20),
    "purple": (112, 40, 150),
    "pink": (244, 148, 184),
    "brown": (110, 68, 38),
    "teal": (16, 128, 130),
    "navy": (20, 32, 84),
    "cream": (250, 236, 204),
}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
Texture = Callable[[np.random.Generator, np.ndarray, int], np.ndarray]


def shade(colour: np.ndarray, factor: float) -> np.ndarray:
    """The colour made lighter (factor above 1) or darker."""
    return np.clip(colour * factor + (12 if factor > 1 else 0) * (factor - 1), 0, 255)


def _flat(colour: np.ndarray, size: int) -> np.ndarray:
    return np.broadcast_to(colour.astype(np.float32), (size, size, 3)).copy()


def plain(rng: np.random.Generator, colour: np.ndarray, size: int) -> np.ndarray:
    return _flat(colour, size)


def gradient(rng: np.random.Generator, colour: np.ndarray, size: int) -> np.ndarray:
    """From the colour to a darker or lighter one of the same hue, in any direction."""
    angle = rng.uniform(0, 2 * math.pi)
    ys, xs = _grid(size)
    t = (xs * math.cos(angle) + ys * math.sin(angle)) / 2 + 0.5
    end = shade(colour, float(rng.choice([0.62, 1.3])))
    return (colour + t.clip(0, 1)[..., None] * (end - colour)).astype(np.float32)


def radial(rng: np.random.Generator, colour: np.ndarray, size: int) -> np.ndarray:
    """Lighter in the middle, darker to the corners."""
    ys, xs = _grid(size)
    x, y = rng.uniform(-0.3, 0.3, 2)
    t = np.hypot(xs - x, ys - y)[..., None]
    return np.clip(colour * (1.12 - 0.34 * t), 0, 255).astype(np.float32)


def stripes(rng: np.random.Generator, colour: np.ndarray, size: int) -> np.ndarray:
    angle = float(rng.choice([0, math.pi / 2, math.pi / 4, -math.pi / 4]))
    ys, xs = _grid(size)
    wave = np.sin((xs * math.cos(angle) + ys * math.sin(angle)) * math.pi * rng.uniform(3, 7))
    t = np.clip(wave * 4 + 0.5, 0, 1)[..., None] * rng.uniform(0.25, 0.6)
    return (colour + t * (shade(colour, float(rng.choice([0.8, 1.18]))) - colour)).astype(np.float32)


def dots(rng: np.random.Generator, colour: np.ndarray, size: int) -> np.ndarray:
    ys, xs = _grid(size)
    pitch = rng.uniform(6, 11)
    cell = np.cos(xs * math.pi * pitch / 2) * np.cos(ys * math.pi * pitch / 2)
    t = np.clip((np.abs(cell) - 0.72) * 8, 0, 1)[..., None] * 0.8
    return (colour + t * (shade(colour, float(rng.choice([0.76, 1.25]))) - colour)).astype(np.float32)


def paper(rng: np.random.Generator, colour: np.ndarray, size: int) -> np.ndarray:
    """Coarse and fine grain, and a fold now and then."""
    canvas = _flat(colour, size) + 14 * _noise(rng, size, 8)[..., None] + 5 * _noise(rng, size, 48)[..., None]
    if rng.random() < 0.5:
        at = int(rng.uniform(0.25, 0.75) * size)
        canvas[:, at : at + 1] *= 0.9
        canvas[:, at + 1 : at + 2] = np.clip(canvas[:, at + 1 : at + 2] * 1.06, 0, 255)
    return canvas.clip(0, 255)


def wood(rng: np.random.Generator, colour: np.ndarray, size: int) -> np.ndarray:
    """Boards with grain along them."""
    grain = cv2.resize(_noise(rng, 64, 64)[:, :6], (size, size), interpolation=cv2.INTER_LINEAR)
    canvas = _flat(colour, size) * (1 + 0.14 * grain[..., None])
    boards = int(rng.integers(3, 6))
    for number in range(boards):
        start, end = round(number * size / boards), round((number + 1) * size / boards)
        canvas[start:end] *= rng.uniform(0.88, 1.08)
        canvas[start : start + max(1, size // 128)] *= 0.7
    return canvas.clip(0, 255).astype(np.float32)


def brick(rng: np.random.Generator, colour: np.ndarray, size: int) -> np.ndarray:
    rows = int(rng.integers(6, 11))
    high, wide = size / rows, 2.2 * size / rows
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32)
    row = np.floor(ys / high)
    shifted = xs + (row % 2) * wide / 2
    column = np.floor(shifted / wide)
    tone = np.modf(np.sin(row * 12.9898 + column * 78.233 + rng.uniform(0, 9)) * 43758.5453)[0]
    joint = np.maximum(0.5, size / 128)
    is_joint = (ys % high < joint) | (shifted % wide < joint)
    canvas = _flat(colour, size) * (1 + 0.12 * tone[..., None])
    canvas[is_joint] = canvas[is_joint] * 0.4 + 0.6 * np.array((190, 184, 176), dtype=np.float32) * 0.8
    return canvas.clip(0, 255).astype(np.float32)


def bokeh(rng: np.random.Generator, colour: np.ndarray, size: int) -> np.ndarray:
    """Soft discs of light out of focus."""
    canvas = gradient(rng, shade(colour, 0.8), size)
    for _ in range(int(rng.integers(6, 12))):
        x, y, radius = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(0.04, 0.14) * size
        disc = np.zeros((size, size), dtype=np.uint8)
        cv2.circle(disc, (round(x * 8), round(y * 8)), round(radius * 8), 255, -1, cv2.LINE_AA, 3)
        light = shade(colour, rng.uniform(1.15, 1.45))
        canvas += (disc[..., None] / 255) * rng.uniform(0.12, 0.4) * (light - canvas)
    return canvas.clip(0, 255).astype(np.float32)


def rays(rng: np.random.Generator, colour: np.ndarray, size: int) -> np.ndarray:
    """A sunburst of two tones."""
    ys, xs = _grid(size)
    angle = np.arctan2(ys - rng.uniform(-0.5, 0.6), xs - rng.uniform(-0.3, 0.3))
    t = np.clip(np.sin(angle * int(rng.integers(7, 13))) * 6 + 0.5, 0, 1)[..., None] * 0.7
    return (colour + t * (shade(colour, float(rng.choice([0.8, 1.2]))) - colour)).astype(np.float32)


def halves(rng: np.random.Generator, colour: np.ndarray, size: int) -> np.ndarray:
    """The colour above, a darker tone of it below a slanted edge."""
    ys, xs = _grid(size)
    t = np.clip((ys - rng.uniform(-0.2, 0.5) + xs * rng.uniform(-0.4, 0.4)) * size / 2, 0, 1)[..., None]
    return (colour + t * (shade(colour, float(rng.choice([0.74, 1.2]))) - colour)).astype(np.float32)


def checks(rng: np.random.Generator, colour: np.ndarray, size: int) -> np.ndarray:
    ys, xs = np.mgrid[0:size, 0:size]
    cell = max(2, size // int(rng.integers(8, 15)))
    t = (((ys // cell + xs // cell) % 2) * 0.5)[..., None].astype(np.float32)
    return (colour + t * (shade(colour, float(rng.choice([0.8, 1.2]))) - colour)).astype(np.float32)


def waves(rng: np.random.Generator, colour: np.ndarray, size: int) -> np.ndarray:
    ys, xs = _grid(size)
    wave = np.sin((ys + 0.1 * np.sin(xs * math.pi * rng.uniform(2, 4))) * math.pi * rng.uniform(4, 8))
    t = np.clip(wave * 3 + 0.5, 0, 1)[..., None] * 0.5
    return (colour + t * (shade(colour, float(rng.choice([0.8, 1.2]))) - colour)).astype(np.float32)


# Textures by the names that captions give them.
TEXTURES: dict[str, Texture] = {
    "plain": plain,
    "gradient": gradient,
    "radial": radial,
    "striped": stripes,
    "dotted": dots,
    "paper": paper,
    "wooden": wood,
    "brick": brick,
    "bokeh": bokeh,
    "sunburst": rays,
    "two-tone": halves,
}
HELD_OUT_TEXTURES: dict[str, Texture] = {"checked": checks, "wavy": waves}
# Textures that a caption names; the others are how a colour happens to look.
NAMED = frozenset({"striped", "dotted", "paper", "wooden", "brick", "bokeh", "sunburst", "checked", "wavy"})


def jittered(rng: np.random.Generator, name: str) -> np.ndarray:
    """A named colour as paint varies: float32 RGB near the palette's."""
    return np.clip(np.array(PALETTE[name]) + rng.normal(0, 5, 3), 0, 255).astype(np.float32)


def background(rng: np.random.Generator, texture: str, colour: str, size: int) -> np.ndarray:
    """A background H W 3 (float32, 0..255)."""
    made = TEXTURES.get(texture) or HELD_OUT_TEXTURES[texture]
    return made(rng, jittered(rng, colour), size)


@cache
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """y and x of the pixels' centres, -1 to 1."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    return np.meshgrid(axis, axis, indexing="ij")  # type: ignore[return-value]


def _noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise of standard deviation about 1, H W."""
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    return coarse if cells == size else cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)


@cache
def photographs(folder: str) -> tuple[Path, ...]:
    """The images of a folder, in the order of their names. Raises UserError where there is none."""
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not found:
        raise UserError(f"data.posters.photos: there is no JPEG, PNG or WebP image in {folder}; name another folder.")
    return tuple(found)


def photograph(rng: np.random.Generator, folder: str, size: int) -> np.ndarray:
    """A square crop of one of a folder's images. Raises UserError for one that cannot be read."""
    paths = photographs(folder)
    path = paths[rng.integers(len(paths))]
    image = _loaded(path, size)
    height, width = image.shape[:2]
    side = int(min(height, width) * rng.uniform(0.6, 1.0))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    crop = image[top : top + side, left : left + side]
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)


@cache
def _loaded(path: Path, size: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * size, 2 * size))
            rgb = image.convert("RGB")
            rgb.thumbnail((4 * size, 4 * size))
            return np.asarray(rgb)
    except Exception as error:  # Pillow's plugins share no class for what they meet in damaged files
        raise UserError(f"data.posters.photos: {path} cannot be read ({error}); remove it or replace it.") from error
