"""Lettering: a line of text in a typeface, tracked, slanted, turned or set on an arc; its coverage and its polygon.

    text, typeface, size -> mask of the ink (h w) -> placed on the canvas, straight or bent -> coverage (H W), polygon

The polygon follows the ink exactly: its top and bottom are those of the ink, its ends those of the first and the last
letter's ink. Letters: H W pixels of the canvas, h w of the mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from vlad.layout.typefaces import font, measure
from vlad.types import Polygon

FINER = 2  # masks of bent and turned lines are rendered so many times larger
LEAST_SPACE_EM = 0.26
PROBE_PIXELS = 48  # the size at which lines are measured
MOST_GLYPHS = 65536  # kept in memory, some 500 bytes each
ARC_POINTS = 5  # of the polygon's upper edge, and of its lower one


@dataclass(frozen=True)
class Setting:
    """How a line is set. Tracking in em; slant, turn and arc in degrees (0: upright, level, straight)."""

    typeface: str
    tracking: float = 0.0
    slant: float = 0.0
    turn: float = 0.0
    # The angle that the line spans on its circle: positive bends its ends down, negative up.
    arc: float = 0.0


@dataclass(frozen=True)
class Lettering:
    """A line on the canvas: coverage of a window of it (h w, uint8), the window's corner, and the polygon in pixels."""

    coverage: np.ndarray
    left: int
    top: int
    points: tuple[tuple[float, float], ...]

    def window_of(self, canvas: np.ndarray) -> np.ndarray:
        """The part of a canvas (H W 3) that the window covers."""
        height, width = self.coverage.shape
        return canvas[max(0, self.top) : max(0, self.top + height), max(0, self.left) : max(0, self.left + width)]

    def polygon(self, size_pixels: int) -> Polygon:
        """The polygon in image coordinates (0..1)."""
        return tuple((x / size_pixels, y / size_pixels) for x, y in self.points)


@lru_cache(maxsize=MOST_GLYPHS)
def _glyph(character: str, typeface: str, size_pixels: int) -> tuple[np.ndarray, int, int]:
    """A character's ink (h w, uint8) and where it starts against the pen on the baseline: x, y."""
    mask, (x, y) = font(typeface, size_pixels).getmask2(character, mode="L", anchor="ls")
    pixels = np.frombuffer(bytes(mask), dtype=np.uint8).reshape(mask.size[1], mask.size[0])
    rows, columns = np.flatnonzero(pixels.max(axis=1, initial=0)), np.flatnonzero(pixels.max(axis=0, initial=0))
    if rows.size == 0:
        return pixels[:0, :0], x, y
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], x + int(columns[0]), y + int(rows[0])


@lru_cache(maxsize=MOST_GLYPHS)
def _advance_em(pair: str, typeface: str) -> float:
    """From the pen of a pair's first character to that of the second, in em, kerning included."""
    advance = (measure(typeface, pair) - measure(typeface, pair[1:])) if len(pair) > 1 else measure(typeface, pair)
    # Small letters run together where a font's space is narrow.
    return max(advance, LEAST_SPACE_EM) if pair[0] == " " else advance


def _set(text: str, setting: Setting, size_pixels: int) -> list[tuple[np.ndarray, int, int]]:
    """The glyphs that leave ink, each with its left and top against the pen's start on the baseline."""
    pen, placed = 0.0, []
    for number, character in enumerate(text):
        ink, x, y = _glyph(character, setting.typeface, size_pixels)
        if ink.size:
            placed.append((ink, round(pen) + x, y))
        pen += (_advance_em(text[number : number + 2], setting.typeface) + setting.tracking) * size_pixels
    return placed


def _bounds(placed: list[tuple[np.ndarray, int, int]]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of glyphs."""
    return (
        min(x for _, x, _ in placed),
        min(y for _, _, y in placed),
        max(x + ink.shape[1] for ink, x, _ in placed),
        max(y + ink.shape[0] for ink, _, y in placed),
    )


def ink_mask(text: str, setting: Setting, size_pixels: int) -> np.ndarray:
    """The line's ink, white on black (h w, uint8), cropped to it; straight and upright."""
    placed = _set(text, setting, size_pixels)
    left, top, right, bottom = _bounds(placed)
    canvas = np.zeros((bottom - top, right - left), dtype=np.uint8)
    for ink, x, y in placed:
        window = canvas[y - top : y - top + ink.shape[0], x - left : x - left + ink.shape[1]]
        np.maximum(window, ink, out=window)
    return canvas


def largest_size(text: str, setting: Setting, width: float, height: float) -> int:
    """The largest size (pixels an em) at which the line's ink fits into a box of the canvas, 0 where none does."""
    left, top, right, bottom = _bounds(_set(text, setting, PROBE_PIXELS))
    ink_width, ink_height = float(right - left), float(bottom - top)
    lean = abs(math.tan(math.radians(setting.slant))) * ink_height
    across, down = ink_width + lean, float(ink_height)
    turn = math.radians(abs(setting.turn))
    across, down = across * math.cos(turn) + down * math.sin(turn), across * math.sin(turn) + down * math.cos(turn)
    if setting.arc:
        span = math.radians(abs(setting.arc))
        radius = ink_width / span
        across = 2 * (radius + ink_height / 2) * math.sin(min(span, math.pi) / 2)
        down = ink_height + radius * (1 - math.cos(span / 2))
    return int(PROBE_PIXELS * min(width / across, height / down))


def letter(text: str, setting: Setting, size_pixels: int, centre: tuple[float, float]) -> Lettering:
    """The line with the middle of its ink at `centre` (x, y in pixels of the canvas)."""
    if setting.arc:
        return _on_an_arc(text, setting, size_pixels, centre)
    if not setting.slant and not setting.turn:
        mask = ink_mask(text, setting, size_pixels)
        height, width = mask.shape
        left, top = round(centre[0] - width / 2), round(centre[1] - height / 2)
        corners = ((left, top), (left + width, top), (left + width, top + height), (left, top + height))
        return Lettering(mask, left, top, tuple((float(x), float(y)) for x, y in corners))
    return _turned(text, setting, size_pixels, centre)


def _turned(text: str, setting: Setting, size_pixels: int, centre: tuple[float, float]) -> Lettering:
    """Slanted, then turned about its middle."""
    mask = ink_mask(text, setting, FINER * size_pixels)
    height, width = mask.shape
    lean, turn = math.tan(math.radians(setting.slant)), math.radians(setting.turn)
    shear = np.array([[1.0, -lean], [0.0, 1.0]])
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    matrix = rotation @ shear / FINER  # from the mask, about its middle, to the canvas
    box = np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=np.float64)
    corners = (box - (width / 2, height / 2)) @ matrix.T + centre
    lower, upper = np.floor(corners.min(axis=0)).astype(int), np.ceil(corners.max(axis=0)).astype(int)
    shift = np.array(centre) - lower - matrix @ (width / 2, height / 2)
    # Corners of pixels, not their centres: half a pixel on either side.
    to_window = np.column_stack([matrix, shift + matrix @ (0.5, 0.5) - 0.5])
    size = int(upper[0] - lower[0]), int(upper[1] - lower[1])
    coverage = cv2.warpAffine(mask, to_window, size, flags=cv2.INTER_LINEAR)
    # The ink's own parallelogram: a slanted box is wider than what stands in it.
    return Lettering(coverage, int(lower[0]), int(lower[1]), tuple((float(x), float(y)) for x, y in corners))


def _on_an_arc(text: str, setting: Setting, size_pixels: int, centre: tuple[float, float]) -> Lettering:
    """On a circle: the baseline's ends lie `arc` degrees apart."""
    mask = ink_mask(text, setting, FINER * size_pixels)
    height, width = (extent / FINER for extent in mask.shape)
    span, bend = math.radians(abs(setting.arc)), math.copysign(1.0, setting.arc)
    radius = width / span
    # The middle of the line is at `centre`; the circle's centre below it (ends down) or above it (ends up).
    rise = radius * (1 - math.cos(span / 2))
    origin = np.array([centre[0], centre[1] + bend * (radius - rise / 2)])

    def place(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Canvas points of mask points: u along the line and v down it, both from its middle, in canvas pixels."""
        angle, distance = u / radius, radius - bend * v
        return np.stack([origin[0] + distance * np.sin(angle), origin[1] - bend * distance * np.cos(angle)], axis=-1)

    along = np.linspace(-width / 2, width / 2, ARC_POINTS)
    upper_edge = place(along, np.full(ARC_POINTS, -height / 2))
    lower_edge = place(along[::-1], np.full(ARC_POINTS, height / 2))
    dense = np.linspace(-width / 2, width / 2, 4 * ARC_POINTS)
    outline = np.concatenate([place(dense, np.full_like(dense, v)) for v in (-height / 2, height / 2)])
    lower, upper = np.floor(outline.min(axis=0)).astype(int) - 1, np.ceil(outline.max(axis=0)).astype(int) + 1
    ys, xs = np.mgrid[lower[1] : upper[1], lower[0] : upper[0]].astype(np.float32) + 0.5
    dx, dy = xs - origin[0], bend * (origin[1] - ys)
    u = np.arctan2(dx, dy) * radius
    v = bend * (radius - np.hypot(dx, dy))
    map_x = ((u + width / 2) * FINER - 0.5).astype(np.float32)
    map_y = ((v + height / 2) * FINER - 0.5).astype(np.float32)
    coverage = cv2.remap(mask, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    points = tuple((float(x), float(y)) for x, y in (*upper_edge, *lower_edge))
    return Lettering(coverage, int(lower[0]), int(lower[1]), points)


def paint(canvas: np.ndarray, lettering: Lettering, colour: np.ndarray, strength: float = 1.0) -> None:
    """Blends a colour into the canvas (H W 3, float32) where the line covers it, in place."""
    window = lettering.window_of(canvas)
    top, left = max(0, -lettering.top), max(0, -lettering.left)
    part = lettering.coverage[top : top + window.shape[0], left : left + window.shape[1]]
    window += part[..., None].astype(np.float32) * (strength / 255) * (colour - window)


def widened(lettering: Lettering, pixels: int) -> Lettering:
    """The line with its strokes `pixels` wider all around: an outline, once the line itself is painted over it."""
    padded = np.pad(lettering.coverage, pixels)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
    grown = cv2.dilate(padded, kernel)
    return Lettering(grown, lettering.left - pixels, lettering.top - pixels, lettering.points)


def shifted(lettering: Lettering, right: int, down: int) -> Lettering:
    """The line moved by whole pixels: its shadow."""
    return Lettering(lettering.coverage, lettering.left + right, lettering.top + down, lettering.points)


@lru_cache(maxsize=MOST_GLYPHS)
def cap_height(typeface: str, size_pixels: int) -> int:
    """The height of a capital's ink in pixels."""
    return _glyph("H", typeface, size_pixels)[0].shape[0]
