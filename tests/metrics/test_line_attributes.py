"""Colours and places of lines against captions: right, swapped with another line's, wrong, or missing."""

import re
from dataclasses import astuple

import numpy as np
import pytest

from vlad.data.options import PosterOptions
from vlad.data.posters.backgrounds import PALETTE
from vlad.data.posters.render import render_poster
from vlad.layout.polygons import box_polygon
from vlad.metrics.line_attributes import (
    AttributeScore,
    NamedAttributes,
    named_attributes,
    score_line_colours,
    score_line_places,
)
from vlad.metrics.line_matching import ImageReading, match_lines
from vlad.types import TextLine

POSTERS = [render_poster(PosterOptions(min_letter_height=0.07, seed=5), index) for index in range(80)]


def read_exactly(lines: tuple[TextLine, ...]) -> ImageReading:
    """What a faultless engine reads."""
    return match_lines(lines, [line.text for line in lines])


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        (
            'a red poster with a blue circle: in the top left corner "SALE" in large white slab serif letters with a'
            ' black outline; below it "50 % off" in small navy type',
            [("SALE", "white", "in the top left corner"), ("50 % off", "navy", "below")],
        ),
        (
            'a green label with a red star in the middle that says "Jam" in pink script lettering at the bottom',
            [("Jam", "pink", "at the bottom")],
        ),
        ('a black banner saying "RED", "in blue letters" and "c" in serif type', [("RED", None, None)] * 3),
        ("a street", []),
    ],
)
def test_captions_name_colours_and_places(caption: str, wanted: list[tuple[str, str | None, str | None]]) -> None:
    found = named_attributes(caption)

    assert [(own.colour, own.place) for own in found] == [other[1:] for other in wanted]
    assert all(isinstance(own, NamedAttributes) and f'"{own.text}"' in caption for own in found)


def test_rendered_posters_have_the_attributes_that_their_captions_name() -> None:
    captions = [poster.caption for poster in POSTERS]
    readings = [read_exactly(poster.layout.lines) for poster in POSTERS]

    for poster in POSTERS:
        named = named_attributes(poster.caption)
        assert [own.text for own in named] == [line.text for line in poster.layout.lines]
        assert all(own.colour in (None, line.colour) for own, line in zip(named, poster.layout.lines, strict=True))

    colours = score_line_colours([poster.image for poster in POSTERS], readings, captions)
    places = score_line_places(readings, captions)
    assert colours.named > 100 and colours.right / colours.named > 0.95, colours
    assert places.named > 100 and places.right == places.named, places


def test_colours_that_are_swapped_between_the_lines_of_a_poster_are_found_as_swapped() -> None:
    swapped = []
    for poster in POSTERS:
        colours = [own.colour for own in named_attributes(poster.caption)][:2]
        if len(set(colours)) == 2 and None not in colours:
            first, second = map(str, colours)
            one, other = (f'"{line.text}" in ' for line in poster.layout.lines[:2])
            before, middle, after = re.split(f"{re.escape(one)}|{re.escape(other)}", poster.caption)
            caption = f"{before}{one}{middle.replace(first, second, 1)}{other}{after.replace(second, first, 1)}"
            score = score_line_colours([poster.image], [read_exactly(poster.layout.lines)], [caption])
            swapped.append(score.swapped >= 2)
    assert len(swapped) > 15 and sum(swapped) / len(swapped) > 0.9, swapped


def painted(colours: list[str]) -> tuple[np.ndarray, tuple[TextLine, ...]]:
    """Bars of the colours instead of letters, from the top down, and the lines there."""
    image = np.full((100, 100, 3), PALETTE["white"], dtype=np.uint8)
    lines = []
    for number, colour in enumerate(colours):
        top = 10 + 30 * number
        image[top + 2 : top + 8, 30:70] = PALETTE[colour]
        lines.append(TextLine(f"line {number}", box_polygon(0.28, top / 100, 0.72, (top + 10) / 100)))
    return image, tuple(lines)


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (["red", "blue", "black"], AttributeScore(2, right=2)),
        (["blue", "red", "black"], AttributeScore(2, swapped=2)),
        (["red", "red", "black"], AttributeScore(2, right=1, swapped=1)),
        (["green", "blue", "black"], AttributeScore(2, right=1, wrong=1)),
    ],
)
def test_swapped_colours_are_no_wrong_ones(shown: list[str], wanted: AttributeScore) -> None:
    image, lines = painted(shown)
    caption = 'a sign with the text "line 0" in red letters, "line 1" in blue serif letters and "line 2"'

    assert score_line_colours([image], [read_exactly(lines)], [caption]) == wanted


def test_lines_that_are_not_read_are_missing() -> None:
    image, lines = painted(["red", "blue"])
    reading = match_lines(lines[:1], ["line 0", "other"])
    caption = 'a sign: at the top "line 0" in red letters, below "other" in blue letters'

    assert score_line_colours([image], [reading], [caption]) == AttributeScore(2, right=1, missing=1)
    assert score_line_places([reading], [caption]) == AttributeScore(2, right=1, missing=1)


@pytest.mark.parametrize(
    ("boxes", "places", "wanted"),
    [
        (((0.1, 0.1), (0.8, 0.9)), ("in the top left corner", "in the bottom right corner"), (2, 0, 0)),
        (((0.8, 0.9), (0.1, 0.1)), ("in the top left corner", "in the bottom right corner"), (0, 2, 0)),
        (((0.5, 0.5), (0.8, 0.9)), ("in the top left corner", "in the bottom right corner"), (1, 0, 1)),
        (((0.5, 0.1), (0.5, 0.5)), ("at the top", "below it"), (2, 0, 0)),
        (((0.5, 0.2), (0.5, 0.1)), ("at the top", "below it"), (1, 1, 0)),
        # As near to the place that is named as makes no difference.
        (((0.5, 0.39), (0.5, 0.62)), ("at the top", "at the bottom"), (2, 0, 0)),
    ],
)
def test_places_are_where_the_lines_are_read(
    boxes: tuple[tuple[float, float], ...], places: tuple[str, ...], wanted: tuple[int, int, int]
) -> None:
    lines = tuple(
        TextLine(f"line {number}", box_polygon(x - 0.05, y - 0.03, x + 0.05, y + 0.03))
        for number, (x, y) in enumerate(boxes)
    )
    caption = "a sign, " + ", ".join(f'{place} "line {number}"' for number, place in enumerate(places))

    assert astuple(score_line_places([read_exactly(lines)], [caption])) == (len(lines), *wanted, 0)
