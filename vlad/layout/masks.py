"""Masks: which pixels of an image are drawn anew (H W, bool), and which lines stand there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from vlad.layout.polygons import bounding_box, box_polygon
from vlad.types import Layout, Polygon, TextLine
from vlad.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np

GROWTH = 0.2  # of a line's height: how far a mask reaches beyond the lines that it is made of
LINE_PITCH = 1.25  # of lines that share a mask, in line heights
LETTER_ASPECTS = (1.3, 1.7)  # height over width of the letters' cells where a line is fitted into a mask
# Training: the shares of masks that are made of lines, and that touch none (what removes text); the others are any box.
OF_LINES_SHARE, BESIDE_LINES_SHARE = 0.6, 0.2
LEAST_BOX, MOST_BOX = 0.15, 0.9  # sides of such a box, shares of the image's
TRIES = 8  # to find a box beside the lines, each with smaller ones


def mask_of_image(image: Image.Image) -> np.ndarray:
    """The mask that an image shows: what is lighter than middle grey."""
    return np.asarray(image.convert("L")) >= 128


def mask_of_polygons(polygons: Sequence[Polygon], width: int, height: int) -> np.ndarray:
    """The pixels that polygons cover, those on their edges included."""
    mask = np.zeros((height, width), dtype=np.uint8)
    for polygon in polygons:
        points = np.array(polygon).clip(-1, 2) * (width, height) - 0.5  # pixel centres
        cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 1)
    return mask.astype(bool)


def grown(mask: np.ndarray, across: int, down: int) -> np.ndarray:
    """The mask with so many pixels more to either side, and above and below."""
    kernel = np.ones((2 * down + 1, 2 * across + 1), dtype=np.uint8)
    return cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)


def mask_of_lines(lines: Sequence[TextLine], width: int, height: int, growth: float = GROWTH) -> np.ndarray:
    """The lines' polygons, each grown by `growth` of its height, a pixel at least."""
    mask = np.zeros((height, width), dtype=bool)
    for line in lines:
        by = max(1, round(growth * _line_height(line) * height))
        mask |= grown(mask_of_polygons([line.polygon], width, height), by, by)
    return mask


def touched_lines(mask: np.ndarray, layout: Layout) -> tuple[TextLine, ...]:
    """The lines of a layout that a mask touches."""
    height, width = mask.shape
    return tuple(line for line in layout.lines if (mask & mask_of_polygons([line.polygon], width, height)).any())


def lines_inside(strings: Sequence[str], mask: np.ndarray) -> Layout:
    """Strings as rows that share the box of a mask, each as large as fits with letters of common proportions."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    left, top, right, bottom = float(columns[0]), float(rows[0]), columns[-1] + 1.0, rows[-1] + 1.0  # pixels
    inset = GROWTH / (1 + 2 * GROWTH)  # what `mask_of_lines` would add
    room = (bottom - top) * (1 - 2 * inset) / (1 + LINE_PITCH * (len(strings) - 1)) if strings else 0.0
    lines = []
    for number, text in enumerate(strings):
        cell = min((right - left) * (1 - inset) / len(text), room / LETTER_ASPECTS[0])
        half_width, half_height = cell * len(text) / 2, min(room, cell * LETTER_ASPECTS[1]) / 2
        x = (left + right) / 2
        y = top + (bottom - top) * inset + number * LINE_PITCH * room + room / 2
        box = (x - half_width) / width, (y - half_height) / height, (x + half_width) / width, (y + half_height) / height
        lines.append(TextLine(text, box_polygon(*map(float, box))))
    return Layout(tuple(lines))


def random_mask(rng: np.random.Generator, layout: Layout, width: int, height: int) -> np.ndarray:
    """A mask as people draw them, for training: one or more lines grown a little, a box beside them, or any box."""
    kind = rng.random() if layout.lines else 1.0
    if kind < OF_LINES_SHARE:
        count = 1 + int(rng.integers(len(layout.lines)))
        chosen = rng.permutation(len(layout.lines))[:count]
        mask = np.zeros((height, width), dtype=bool)
        for line in (layout.lines[i] for i in chosen):
            # A longer word may have stood there, or be wanted there: more room to the sides than above and below.
            sides, ends = rng.uniform(0, (2.0, 0.5)) * _line_height(line) * height
            mask |= grown(mask_of_polygons([line.polygon], width, height), 1 + round(sides), 1 + round(ends))
        return mask
    mask = _random_box(rng, MOST_BOX, width, height)
    if kind < OF_LINES_SHARE + BESIDE_LINES_SHARE:
        for number in range(1, TRIES):
            if not touched_lines(mask, layout):
                break
            mask = _random_box(rng, MOST_BOX + (LEAST_BOX - MOST_BOX) * number / TRIES, width, height)
    return mask


def _random_box(rng: np.random.Generator, most: float, width: int, height: int) -> np.ndarray:
    extent = rng.uniform(LEAST_BOX, most, size=2)
    left, top = rng.uniform(0, 1 - extent)
    return mask_of_polygons([box_polygon(left, top, left + extent[0], top + extent[1])], width, height)


def _line_height(line: TextLine) -> float:
    """The height of an upright line, or the shorter side of a tilted one's quad; a share of the image."""
    points = np.array(line.polygon)
    half = len(points) // 2
    ends = np.linalg.norm(points[0] - points[-1]), np.linalg.norm(points[half - 1] - points[half])
    _, top, _, bottom = bounding_box(line.polygon)
    return min(float(ends[0] + ends[1]) / 2, bottom - top)


ImageLike = Image.Image | np.ndarray


def edits_of(
    images: ImageLike | Sequence[ImageLike] | None, masks: ImageLike | Sequence[ImageLike] | None, count: int
) -> list[Edit | None]:
    """The edit of each of `count` prompts: images and masks, one for all or one each, or None for no edits.

    Images are Pillow's or H W 3 (uint8), masks Pillow's (white is drawn anew) or H W (bool). Raises UserError for an
    image without a mask or the other way round, and for pairs that do not fit.
    """
    if images is None and masks is None:
        return [None] * count
    if images is None or masks is None:
        raise UserError("An edit needs an image and a mask; one of the two is missing.")
    each = [_one_each(images, count), _one_each(masks, count)]
    if any(len(given) != count for given in each):
        raise UserError(f"There are {len(each[0])} images and {len(each[1])} masks for {count} prompts; give one each.")
    return [
        Edit(
            np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image),
            mask_of_image(mask) if isinstance(mask, Image.Image) else mask,
        )
        for image, mask in zip(*each, strict=True)
    ]


def _one_each(given: ImageLike | Sequence[ImageLike], count: int) -> list[ImageLike]:
    return [given] * count if isinstance(given, Image.Image | np.ndarray) else list(given)


def common_size(edits: Sequence[Edit | None]) -> tuple[int, int]:
    """Height and width of the images of some edits. Raises UserError where they differ."""
    sizes = {edit.mask.shape for edit in edits if edit is not None}
    if len(sizes) > 1:
        raise UserError(f"The images to edit have {len(sizes)} sizes; edit those of one size together.")
    ((height, width),) = sizes
    return height, width


def layout_of_edit(edit: Edit, layout: Layout | None, strings: Sequence[str]) -> Layout:
    """The lines in the mask: those given, or the prompt's strings. Raises UserError for a line that is not there."""
    if layout is None:
        return lines_inside(strings, edit.mask)
    inside = touched_lines(edit.mask, layout)
    for line in layout.lines:
        if line not in inside:
            raise UserError(
                f"The line {line.text!r} stands outside the mask, where nothing is drawn; move it, or widen the mask."
            )
    return layout


@dataclass(frozen=True)
class Edit:
    """An image (H W 3, uint8) and the part of it that is drawn anew (H W, bool). Raises UserError for a wrong pair."""

    image: np.ndarray
    mask: np.ndarray

    def __post_init__(self) -> None:
        height, width = self.image.shape[:2]
        if self.mask.shape != (height, width):
            raise UserError(
                f"The mask has {self.mask.shape[1]} x {self.mask.shape[0]} pixels and the image {width} x {height};"
                " give a mask of the image's size, or a polygon."
            )
        if not self.mask.any():
            raise UserError("The mask is empty, so there is nothing to draw; paint white what is to be drawn anew.")
