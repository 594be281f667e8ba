"""Attribute binding: does each line have the colour and the place that the caption gives to it, not to another?

    caption -> colour and place of each quoted string -> compared with where and in what colour an engine reads it

An attribute is right, swapped (another line's), wrong (nobody's), or missing (the line is not found in the image).
Captions are those of rendered posters (`data/posters/captions.py`), or written alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vlad.data.posters.backgrounds import PALETTE
from vlad.data.posters.captions import place_words
from vlad.layout.polygons import bounding_box
from vlad.metrics.colours import measure_line_colour, nearest_colour
from vlad.metrics.line_matching import ImageReading, LineReading

Verdict = Literal["right", "swapped", "wrong", "missing"]
BELOW = "below"
PLACE_TOLERANCE = 0.05  # of the image: a line this near to the place that is named is there

_QUOTED = re.compile(r'"([^"]*)"')
_LETTERS = re.compile(r"\s+in ((?:[\w-]+ )+)(?:letters|type|lettering)\b")
_PLACE = r"in the (?:top|bottom) (?:left|right) corner|on the (?:left|right)|at the (?:top|bottom)|in the middle"
_BEFORE = re.compile(rf"(?:\b({_PLACE})|\b(below it|below|under it|then))\s*$")
_AFTER = re.compile(rf"\b({_PLACE})\s*$")


@dataclass(frozen=True)
class NamedAttributes:
    """What a caption says of one quoted string; None where it does not. `place` BELOW: below the string before it."""

    text: str
    colour: str | None
    place: str | None


@dataclass(frozen=True)
class AttributeScore:
    """Lines whose attribute a caption names, by how the image follows it."""

    named: int = 0
    right: int = 0
    swapped: int = 0
    wrong: int = 0
    missing: int = 0


def named_attributes(caption: str) -> tuple[NamedAttributes, ...]:
    """Colour and place of every quoted string of a caption, in its order."""
    quotes = list(_QUOTED.finditer(caption))
    found = []
    for number, quote in enumerate(quotes):
        start = quotes[number - 1].end() if number else 0
        end = quotes[number + 1].start() if number + 1 < len(quotes) else len(caption)
        letters = _LETTERS.match(caption, quote.end(), end)
        colours = [word for word in letters[1].split() if word in PALETTE] if letters else []
        before, after = _BEFORE.search(caption[start : quote.start()]), _AFTER.search(caption[quote.end() :])
        if before is not None:
            place = before[1] or BELOW
        else:
            place = after[1] if after is not None and len(quotes) == 1 else None
        found.append(NamedAttributes(quote[1], colours[0] if colours else None, place))
    return tuple(found)


def score_line_colours(
    images: Sequence[np.ndarray], readings: Sequence[ImageReading], captions: Sequence[str]
) -> AttributeScore:
    """Compares the colour of each line of the images (H W 3, uint8) with the caption's word for it."""
    verdicts = []
    for image, reading, caption in zip(images, readings, captions, strict=True):
        named = named_attributes(caption)
        for number, (line, own) in enumerate(zip(reading.lines, named, strict=True)):
            if own.colour is not None:
                others = {other.colour for other in (*named[:number], *named[number + 1 :])}
                seen = {nearest_colour(measure_line_colour(image, line.boxes), PALETTE)} if line.is_found else set()
                verdicts.append(_verdict(seen, own.colour, others))
    return _counted(verdicts)


def score_line_places(readings: Sequence[ImageReading], captions: Sequence[str]) -> AttributeScore:
    """Compares where each line is read with the caption's words for its place.

    "below it" is right where the line stands below the one before it, swapped where above.
    """
    verdicts: list[Verdict] = []
    for reading, caption in zip(readings, captions, strict=True):
        named = named_attributes(caption)
        for number, (line, own) in enumerate(zip(reading.lines, named, strict=True)):
            if own.place == BELOW:
                verdicts.append(_order(reading.lines[number - 1], line))
            elif own.place is not None:
                others = {other.place for other in (*named[:number], *named[number + 1 :])}
                verdicts.append(_verdict(set(_places(line)) if line.is_found else set(), own.place, others))
    return _counted(verdicts)


def _verdict(seen: set[str], own: str, others: set[str | None]) -> Verdict:
    """`seen`: what the line shows, more than one word where several fit, none where it is not found."""
    if not seen:
        return "missing"
    return "right" if own in seen else "swapped" if seen & others else "wrong"


def _order(before: LineReading, line: LineReading) -> Verdict:
    if not (before.is_found and line.is_found):
        return "missing"
    return "right" if _middle(line)[1] > _middle(before)[1] else "swapped"


def _middle(line: LineReading) -> tuple[float, float]:
    boxes = [bounding_box(box.polygon) for box in line.boxes]
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
    right, bottom = max(box[2] for box in boxes), max(box[3] for box in boxes)
    return (left + right) / 2, (top + bottom) / 2


def _places(line: LineReading) -> Iterator[str]:
    """The captions' words for where a line stands, and for what is as near as PLACE_TOLERANCE."""
    x, y = _middle(line)
    for dx in (0.0, -PLACE_TOLERANCE, PLACE_TOLERANCE):
        for dy in (0.0, -PLACE_TOLERANCE, PLACE_TOLERANCE):
            yield place_words(x + dx, y + dy)


def _counted(verdicts: Sequence[Verdict]) -> AttributeScore:
    return AttributeScore(len(verdicts), *(verdicts.count(name) for name in ("right", "swapped", "wrong", "missing")))
