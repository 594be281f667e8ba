"""Image edits: an image, the mask of the pixels to regenerate, and the lines of text to put there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlad.layout.masks import LINE_MASK_MARGIN, lines_touching, mask_from_image
from vlad.layout.polygons import box_polygon
from vlad.types import Layout, TextLine
from vlad.utils.errors import UserError

LINE_PITCH = 1.25  # of lines that share a mask, in line heights
LETTER_ASPECTS = (1.3, 1.7)  # least and most height over width of a letter's cell

ImageLike = Image.Image | np.ndarray


@dataclass(frozen=True)
class Edit:
    """An image (H W 3, uint8) and the mask of its pixels to regenerate (H W, bool).

    Raises UserError for a mask of another size, and for an empty one.
    """

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
            raise UserError("The mask is empty, so there is nothing to edit; paint white what is to be regenerated.")


def pair_edits(
    images: ImageLike | Sequence[ImageLike] | None, masks: ImageLike | Sequence[ImageLike] | None, count: int
) -> list[Edit | None]:
    """The edit of each of `count` prompts: images and masks, one for all or one each, or None for no edits.

    Images are Pillow's or H W 3 (uint8), masks Pillow's (white is regenerated) or H W (bool). Raises UserError for an
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
            mask_from_image(mask) if isinstance(mask, Image.Image) else mask,
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
    """The lines in the mask: those given, else the prompt's strings. Raises UserError for a line outside the mask."""
    if layout is None:
        return fit_lines_into_mask(strings, edit.mask)
    inside = lines_touching(edit.mask, layout)
    for line in layout.lines:
        if line not in inside:
            raise UserError(
                f"The line {line.text!r} stands outside the mask, where nothing is regenerated; move it, or widen the"
                " mask."
            )
    return layout


def fit_lines_into_mask(strings: Sequence[str], mask: np.ndarray) -> Layout:
    """Strings as rows that share the box of a mask, each as large as fits with letters of common proportions."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    left, top, right, bottom = float(columns[0]), float(rows[0]), columns[-1] + 1.0, rows[-1] + 1.0  # pixels
    inset = LINE_MASK_MARGIN / (1 + 2 * LINE_MASK_MARGIN)  # what `lines_mask` would add
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
