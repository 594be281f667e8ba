"""Edit requests: what `vlad sample --edit` gives, as an image, a mask and lines of text.

--edit shop.png --line 'SALE@0.1,0.1,0.9,0.3'              a line and its place; the mask is its polygon, grown a little
--edit shop.png --mask 0.1,0.1,0.9,0.3 --line SALE         a region, and a line that fills it
--edit shop.png --mask mask.png                            white is generated anew; without a line, text is removed
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlad.inference.input_images import pixels_fingerprint, read_image
from vlad.layout.image_edits import Edit, fit_lines_into_mask
from vlad.layout.layout_files import check_layout
from vlad.layout.masks import lines_mask, mask_from_image, polygons_mask
from vlad.layout.planner_lines import parse_line_options
from vlad.layout.polygons import box_polygon, polygon_area
from vlad.models.text_encoder.prompt import plain_prompt
from vlad.types import Layout, Polygon
from vlad.utils.errors import UserError
from vlad.utils.paths import is_file

_NUMBERS = re.compile(r"[\s\d.,+\-eE]+")


@dataclass(frozen=True)
class EditRequest:
    """An image to edit with its mask, the lines wanted there, and a prompt that names no more than them."""

    edit: Edit
    # None: the prompt's strings fill the mask.
    layout: Layout | None
    prompt: str
    source: EditSource


@dataclass(frozen=True)
class EditSource:
    """An edited image's origin, for the recipe: image and masks as they were given, and fingerprints of both."""

    image: str
    masks: tuple[str, ...]
    image_pixels: str
    mask_pixels: str


def read_edit(
    path: str,
    masks: Sequence[str],
    lines: Sequence[str],
    placed: Layout | None = None,
    prompt_has_strings: bool = False,
) -> EditRequest:
    """The edit of --edit, --mask and --line. `placed`: a layout in place of lines.

    Raises UserError for an image, mask or line that cannot be used.
    """
    image = np.asarray(read_image(path))
    height, width = image.shape[:2]
    with_place = [line for line in lines if _has_place(line)]
    if with_place and len(with_place) < len(lines):
        raise UserError("Some --line have a place (TEXT@LEFT,TOP,RIGHT,BOTTOM) and some do not; give one to all.")
    strings = [] if with_place else [line.strip() for line in lines]
    if not all(strings):
        raise UserError("--line holds no text; give the words, or leave it out to remove the text in the mask.")
    layout = parse_line_options(with_place) if with_place else placed
    if with_place and layout is not None:
        check_layout(layout, "--line")
    if masks:
        mask = _read_masks(masks, width, height)
    elif layout is not None:
        mask = lines_mask(layout.lines, width, height)
    else:
        raise UserError(
            "--edit needs a region: add --mask (an image, white where it is generated anew, or LEFT,TOP,RIGHT,BOTTOM),"
            " or a place to each --line."
        )
    try:
        edit = Edit(image, mask)
    except UserError as error:
        raise UserError(f"--edit {path}: {error}") from error
    if layout is None:
        if strings and prompt_has_strings:
            raise UserError("--line and the prompt's strings both say what to write; give a place to each --line.")
        layout = None if prompt_has_strings else fit_lines_into_mask(strings, mask)
    prompt = plain_prompt([] if layout is None else [line.text for line in layout.lines])
    source = EditSource(str(path), tuple(masks), pixels_fingerprint(image), pixels_fingerprint(mask))
    return EditRequest(edit, layout, prompt, source)


def repeated_edit(source: EditSource, layout: Layout, masks: Sequence[str] = ()) -> Edit:
    """The edit of a recipe, read again. Raises UserError where the image or the mask has changed since."""
    image = np.asarray(read_image(source.image))
    height, width = image.shape[:2]
    if masks or source.masks:
        mask = _read_masks(masks or source.masks, width, height)
    else:
        mask = lines_mask(layout.lines, width, height)
    same_mask = bool(masks) or pixels_fingerprint(mask) == source.mask_pixels
    if pixels_fingerprint(image) != source.image_pixels or not same_mask:
        raise UserError(
            f"{source.image} or its mask is not what it was when the image was edited; give it with --edit and"
            " --mask, and the words with --line."
        )
    return Edit(image, mask)


def _has_place(line: str) -> bool:
    return _NUMBERS.fullmatch(line.rpartition("@")[2]) is not None and "@" in line


def _read_masks(masks: Sequence[str], width: int, height: int) -> np.ndarray:
    """All that the masks cover, H W."""
    return np.logical_or.reduce([_read_mask(given, width, height) for given in masks])


def _read_mask(given: str, width: int, height: int) -> np.ndarray:
    """A mask of an image file, or of a box or polygon in image coordinates."""
    if _NUMBERS.fullmatch(given) and not is_file(given):
        mask = polygons_mask([_parse_polygon(given)], width, height)
        if not mask.any():
            raise UserError(f"--mask {given} covers no pixel of the image; image coordinates go from 0 to 1.")
        return mask
    image = read_image(given)
    if image.size != (width, height):
        raise UserError(
            f"--mask {given} has {image.width} x {image.height} pixels and the image {width} x {height}; give a"
            " mask of the image's size, or a polygon."
        )
    mask = mask_from_image(image)
    if not mask.any():
        raise UserError(
            f"--mask {given} is empty (nothing is white), so nothing would be generated; paint a region white."
        )
    return mask


def _parse_polygon(given: str) -> Polygon:
    try:
        values = [float(value) for value in given.split(",")]
    except ValueError:
        values = []
    polygon = (
        box_polygon(values[0], values[1], values[2], values[3])
        if len(values) == 4
        else tuple(zip(values[::2], values[1::2], strict=False))
    )
    wrong = len(values) != 4 and (len(values) < 6 or len(values) % 2)
    if wrong or not np.isfinite(values).all() or polygon_area(polygon) <= 1e-6:
        raise UserError(
            f"--mask {given} is neither an image nor a region; write LEFT,TOP,RIGHT,BOTTOM as shares of the image,"
            " like 0.1,0.1,0.9,0.3, or x,y of three points or more."
        )
    if not all(-1e-3 <= value <= 1 + 1e-3 for value in values):
        raise UserError(f"--mask {given} reaches outside the image; its numbers are shares of it, 0 to 1.")
    return polygon
