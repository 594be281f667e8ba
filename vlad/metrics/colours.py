"""Colour accuracy: do background and text have the colours that the caption names?

    image, layout -> background (median outside the lines), text colour (median of the pixels farthest from it inside)
                  -> nearest colours of the palette -> compared with the caption's

The text colour is not measured under the glyph map, as an image's font has its strokes elsewhere than the canonical
font. On 300 rendered signs the median under the glyph map (> 0.8) names 92.7 % of the text colours correctly, that of
the 5 % of pixels farthest from the background all of them; of slightly blurred signs (0.6 pixels) 94 %, where the
farthest 15 % name 87 %.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlad.data.signs import PALETTE
from vlad.layout.polygons import bounding_box
from vlad.types import Layout, TextLine

TEXT_SHARE = 0.05  # of the pixels in the lines' boxes: thin strokes leave few pixels that no edge blends
Colour = tuple[float, float, float]

_COLOUR_NAMES = "|".join(PALETTE)
_BACKGROUND_NAME = re.compile(rf"\s*(?:an?|the)\s+({_COLOUR_NAMES})\b", re.IGNORECASE)
_TEXT_NAME = re.compile(rf"\bin\s+({_COLOUR_NAMES})\s+letters\b", re.IGNORECASE)


@dataclass(frozen=True)
class ColourScore:
    """Colour accuracy of images: of the background ("ground") and the text ("ink"; the names are keys of metrics.json).

    Shares of correct colours are 0..1, mean distances Euclidean in RGB (0..255) to the palette's colour. They cover the
    images whose caption names the colour; None if no caption does.
    """

    grounds_right: float | None
    inks_right: float | None
    ground_distance: float | None
    ink_distance: float | None
    grounds_named: int
    inks_named: int


def named_colours(caption: str) -> tuple[str | None, str | None]:
    """The palette's names of background and text colour in a caption, None for one that it does not name.

    Understands captions like those of rendered signs: 'a blue sign that says "HOUSE" in white letters'.
    """
    # Outside the quotation: a sign may say IN RED LETTERS.
    unquoted = re.sub(r'"[^"]*"', '""', caption)
    background, text = _BACKGROUND_NAME.match(unquoted), _TEXT_NAME.search(unquoted)
    return background and background.group(1).lower(), text and text.group(1).lower()


def measure_colours(image: np.ndarray, layout: Layout) -> tuple[Colour, Colour]:
    """Background and text colour of an image (H W 3, uint8) as RGB in 0..255; the layout has at least one line.

    The background is the median of each channel outside the lines' boxes grown by a pixel, or of the whole image if
    they cover it. The text colour is the median of the TEXT_SHARE of pixels inside the boxes farthest from it.
    """
    inside, near = line_boxes(layout.lines, image.shape[1], image.shape[0])
    pixels = image.astype(np.float64)
    background = np.median(pixels[~near] if not near.all() else pixels.reshape(-1, 3), axis=0)
    return _colour(background), _text_colour(pixels[inside], background)


def measure_line_colour(image: np.ndarray, lines: Sequence[TextLine]) -> Colour:
    """The text colour (RGB, 0..255) of one line of an image (H W 3, uint8), from the boxes of its parts.

    The background is that of this line alone: the median of what surrounds its boxes, a pixel wide. Of 142 lines of
    rendered posters it names 140 right.
    """
    inside, near = line_boxes(lines, image.shape[1], image.shape[0])
    pixels = image.astype(np.float64)
    around = near & ~inside
    return _text_colour(pixels[inside], np.median(pixels[around if around.any() else inside], axis=0))


def _text_colour(candidates: np.ndarray, background: np.ndarray) -> Colour:
    """The median of the TEXT_SHARE of pixels (n 3) farthest from the background."""
    distances = np.linalg.norm(candidates - background, axis=1)
    return _colour(np.median(candidates[distances >= np.quantile(distances, 1 - TEXT_SHARE)], axis=0))


def nearest_colour(rgb: Colour, palette: Mapping[str, tuple[int, int, int]] = PALETTE) -> str:
    """The palette's name of a colour (RGB, 0..255): the nearest in CIE Lab.

    Distances in RGB do as well on clean signs, but name 2 % more text colours wrongly if the strokes are blurred.
    """
    distances = np.linalg.norm(_lab(np.array(list(palette.values()))) - _lab(np.array(rgb)), axis=1)
    return list(palette)[int(distances.argmin())]


def score_colours(images: Sequence[np.ndarray], layouts: Sequence[Layout], captions: Sequence[str]) -> ColourScore:
    """Compares each image with its caption; the layouts give the places of the text."""
    backgrounds: list[tuple[bool, float]] = []
    texts: list[tuple[bool, float]] = []
    for image, layout, caption in zip(images, layouts, captions, strict=True):
        if not layout.lines:
            continue
        measured = measure_colours(image, layout)
        for colour, name, results in zip(measured, named_colours(caption), (backgrounds, texts), strict=True):
            if name is not None:
                distance = float(np.linalg.norm(np.subtract(colour, PALETTE[name])))
                results.append((nearest_colour(colour) == name, distance))
    backgrounds_right, background_distance = _means(backgrounds)
    texts_right, text_distance = _means(texts)
    return ColourScore(
        grounds_right=backgrounds_right,
        inks_right=texts_right,
        ground_distance=background_distance,
        ink_distance=text_distance,
        grounds_named=len(backgrounds),
        inks_named=len(texts),
    )


def line_boxes(lines: Sequence[TextLine], width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Two masks (H W): the lines' boxes, and the boxes grown by a pixel."""
    inside, near = np.zeros((2, height, width), dtype=bool)
    for line in lines:
        left, top, right, bottom = bounding_box(line.polygon)
        # At least one whole pixel of the image, wherever the box lies.
        x0 = min(max(0, int(left * width)), width - 1)
        y0 = min(max(0, int(top * height)), height - 1)
        x1 = min(max(x0 + 1, int(np.ceil(right * width))), width)
        y1 = min(max(y0 + 1, int(np.ceil(bottom * height))), height)
        inside[y0:y1, x0:x1] = True
        near[max(0, y0 - 1) : y1 + 1, max(0, x0 - 1) : x1 + 1] = True
    return inside, near


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _means(results: list[tuple[bool, float]]) -> tuple[float | None, float | None]:
    if not results:
        return None, None
    right, distances = zip(*results, strict=True)
    return float(np.mean(right)), float(np.mean(distances))


def _lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB (..., 3; 0..255) in CIE Lab under D65 (CIE 15:2004)."""
    values = rgb / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / (0.9505, 1.0, 1.089)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
