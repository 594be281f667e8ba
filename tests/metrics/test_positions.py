"""Position accuracy on rendered signs, whose text positions are known."""

import pytest

from vlad.data.options import SyntheticOptions
from vlad.data.signs import render_sign
from vlad.layout.polygons import box_polygon
from vlad.metrics.positions import measure_position, named_position, score_positions
from vlad.types import TextLine

SIGNS = [render_sign(SyntheticOptions(seed=11), index) for index in range(300)]
TRUE_LINES = [sign.layout.lines for sign in SIGNS]
CAPTIONS = [sign.caption for sign in SIGNS]


def line(left: float, top: float, right: float, bottom: float) -> TextLine:
    return TextLine("WORD", box_polygon(left, top, right, bottom))


@pytest.mark.parametrize(
    ("caption", "position"),
    [
        ('a red sign that says "SUMMER" in yellow letters at the top', ("at the top", None)),
        ('a sign that says "OPEN" In the middle on the right', ("in the middle", "on the right")),
        ('a sign that says "on the left at the bottom"', (None, None)),
        ("a poster", (None, None)),
    ],
)
def test_the_position_named_in_a_caption(caption, position):
    assert named_position(caption) == position


@pytest.mark.parametrize(
    ("lines", "position"),
    [
        ([line(0.2, 0.1, 0.8, 0.3)], ("at the top", "")),
        ([line(0.05, 0.4, 0.5, 0.6)], ("in the middle", "on the left")),
        ([line(0.6, 0.7, 0.95, 0.9)], ("at the bottom", "on the right")),
        # Two lines are one block, whose middle counts.
        ([line(0.2, 0.3, 0.8, 0.45), line(0.2, 0.55, 0.8, 0.7)], ("in the middle", "")),
        # A line over the whole image stands nowhere else than in its centre.
        ([line(0, 0.7, 1, 0.9)], ("at the bottom", "")),
        ([line(-0.1, 0.7, 1.1, 0.9)], ("at the bottom", "")),
    ],
)
def test_the_position_of_lines(lines, position):
    assert measure_position(lines) == position


def test_rendered_signs_have_the_positions_of_their_captions():
    score = score_positions(TRUE_LINES, CAPTIONS)
    assert score.places_named == sum(named_position(caption) != (None, None) for caption in CAPTIONS) > 150
    assert score.places_right > 0.99
    single = [(lines, caption) for lines, caption in zip(TRUE_LINES, CAPTIONS, strict=True) if len(lines) == 1]
    assert score_positions(*zip(*single, strict=True)).places_right == 1


def test_lines_of_other_signs_do_not():
    score = score_positions(TRUE_LINES, CAPTIONS[1:] + CAPTIONS[:1])
    assert score.places_right < 0.5


def test_an_image_without_ocr_text_is_not_scored():
    assert score_positions([()], ['a sign that says "OPEN" at the top']).places_right is None
    assert score_positions([TRUE_LINES[0]], ["a poster"]).places_named == 0
