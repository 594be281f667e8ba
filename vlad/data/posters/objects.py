"""Simple shapes and icons on posters: each fills a square of the canvas and is named in the caption."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

SHIFT = 4  # OpenCV's fixed point: coordinates in sixteenths of a pixel
ONE = 1 << SHIFT
Points = tuple[tuple[float, float], ...]


def shape_mask(name: str, size: int) -> np.ndarray:
    """The coverage (uint8) of a shape that fills a square of `size` pixels."""
    if name in OUTLINES:
        return _filled(np.array(OUTLINES[name]) * size, size)
    return DRAWN[name](size)


def _filled(points: np.ndarray, size: int) -> np.ndarray:
    mask = np.zeros((size, size), dtype=np.uint8)
    cv2.fillPoly(mask, [np.rint(points * ONE).astype(np.int32)], 255, cv2.LINE_AA, SHIFT)
    return mask


def _disc(mask: np.ndarray, x: float, y: float, radius: float, value: int = 255) -> np.ndarray:
    """Paints a disc, all lengths in shares of the square."""
    size = len(mask)
    centre = round(x * size * ONE), round(y * size * ONE)
    return cv2.circle(mask, centre, round(radius * size * ONE), value, -1, cv2.LINE_AA, SHIFT)


def _empty(size: int) -> np.ndarray:
    return np.zeros((size, size), dtype=np.uint8)


def _circle(size: int) -> np.ndarray:
    return _disc(_empty(size), 0.5, 0.5, 0.48)


def _ring(size: int) -> np.ndarray:
    return _disc(_circle(size), 0.5, 0.5, 0.3, 0)


def _moon(size: int) -> np.ndarray:
    return _disc(_circle(size), 0.7, 0.4, 0.42, 0)


def _drop(size: int) -> np.ndarray:
    return _disc(_filled(np.array(((0.5, 0), (0.79, 0.52), (0.21, 0.52))) * size, size), 0.5, 0.66, 0.33)


def _flower(size: int) -> np.ndarray:
    mask = _empty(size)
    for angle in np.arange(6) * math.pi / 3:
        _disc(mask, 0.5 + 0.3 * math.cos(angle), 0.5 + 0.3 * math.sin(angle), 0.19)
    return _disc(mask, 0.5, 0.5, 0.13, 0)


def _cup(size: int) -> np.ndarray:
    handle = _disc(_disc(_empty(size), 0.72, 0.5, 0.2), 0.72, 0.5, 0.11, 0)
    handle[int(0.25 * size) : int(0.85 * size), int(0.12 * size) : int(0.7 * size)] = 255
    return handle


def _star(points: int, inner: float) -> Points:
    """A star's corners: `inner` is the share of its radius that its valleys have."""
    corners = []
    for number in range(2 * points):
        radius, angle = 0.5 * (inner if number % 2 else 1.0), number * math.pi / points - math.pi / 2
        corners.append((0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle)))
    return tuple(corners)


def _heart() -> Points:
    corners = []
    for t in np.linspace(0, 2 * math.pi, 48):
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        corners.append((0.5 + math.sin(t) ** 3 / 2, (12 - y) / 29))
    return tuple(corners)


def _leaf() -> Points:
    upper = [(t, 0.5 - 0.32 * math.sin(math.pi * t)) for t in np.linspace(0, 1, 24)]
    return (*upper, *((x, 1 - y) for x, y in reversed(upper)))


OUTLINES: dict[str, Points] = {
    "square": ((0, 0), (1, 0), (1, 1), (0, 1)),
    "triangle": ((0.5, 0), (1, 0.93), (0, 0.93)),
    "diamond": ((0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)),
    "arrow": ((0, 0.36), (0.55, 0.36), (0.55, 0.1), (1, 0.5), (0.55, 0.9), (0.55, 0.64), (0, 0.64)),
    "mountain": ((0, 0.9), (0.36, 0.15), (0.55, 0.52), (0.68, 0.34), (1, 0.9)),
    "star": _star(5, 0.42),
    "sun": _star(12, 0.66),
    "burst": _star(16, 0.82),
    "heart": _heart(),
    "leaf": _leaf(),
}
DRAWN: dict[str, Callable[[int], np.ndarray]] = {
    "circle": _circle,
    "ring": _ring,
    "moon": _moon,
    "drop": _drop,
    "flower": _flower,
    "cup": _cup,
}
SHAPES = (*OUTLINES, *DRAWN)
