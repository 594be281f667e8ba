"""Colours measured in rendered signs, whose true colours are known."""

import numpy as np
import pytest

from vlad.data.options import SyntheticOptions
from vlad.data.signs import PALETTE, render_sign
from vlad.layout.polygons import box_polygon
from vlad.metrics.colours import measure_colours, named_colours, nearest_colour, score_colours
from vlad.types import Layout, TextLine

SIGNS = [render_sign(SyntheticOptions(seed=11), index) for index in range(300)]


def test_the_true_colours_are_measured_in_rendered_signs():
    backgrounds = texts = 0
    for sign in SIGNS:
        background, text = measure_colours(sign.image, sign.layout)
        backgrounds += nearest_colour(background) == sign.caption.split()[1]
        texts += nearest_colour(text) == sign.layout.lines[0].colour
    assert backgrounds >= 0.97 * len(SIGNS)
    assert texts >= 0.97 * len(SIGNS)


def test_the_score_of_true_signs():
    score = score_colours([s.image for s in SIGNS], [s.layout for s in SIGNS], [s.caption for s in SIGNS])
    assert score.grounds_named == len(SIGNS)
    assert score.inks_named == sum(" letters" in sign.caption for sign in SIGNS)
    assert score.grounds_right >= 0.97
    assert score.inks_right >= 0.97
    # Rendered paint is off the palette's by about 4 a channel.
    assert 2 < score.ground_distance < 15
    assert 2 < score.ink_distance < 20


def test_swapped_captions_score_badly():
    captions = [sign.caption for sign in SIGNS[1:]] + [SIGNS[0].caption]
    score = score_colours([s.image for s in SIGNS], [s.layout for s in SIGNS], captions)
    assert score.grounds_right < 0.3
    assert score.inks_right < 0.5
    assert score.ground_distance > 80


def test_a_sign_without_its_letters_has_the_wrong_text_colour():
    image = np.full((64, 64, 3), PALETTE["blue"], dtype=np.uint8)
    layout = Layout((TextLine("HOUSE", box_polygon(0.1, 0.4, 0.9, 0.6)),))
    score = score_colours([image], [layout], ['a blue sign that says "HOUSE" in white letters'])
    assert (score.grounds_right, score.inks_right) == (1, 0)
    assert score.ground_distance == 0


def test_colours_that_no_caption_names_are_not_scored():
    score = score_colours([SIGNS[0].image], [SIGNS[0].layout], ["a poster"])
    assert (score.grounds_named, score.inks_named) == (0, 0)
    assert score.grounds_right is score.inks_right is score.ground_distance is score.ink_distance is None
    assert score_colours([SIGNS[0].image], [Layout(())], [SIGNS[0].caption]).grounds_named == 0


@pytest.mark.parametrize(
    "box", [(0, 0, 1, 1), (0.5, 0.5, 0.5, 0.5), (-0.3, -0.3, -0.1, -0.1), (1.1, 1.1, 1.5, 1.5), (0.9, 0.9, 2, 2)]
)
def test_boxes_that_cover_the_image_are_measured(box):
    layout = Layout((TextLine("A", box_polygon(*box)),))
    background, text = measure_colours(np.full((10, 10, 3), 7, dtype=np.uint8), layout)
    assert background == text == (7, 7, 7)


@pytest.mark.parametrize("name", PALETTE)
def test_every_colour_is_nearest_to_itself(name):
    assert nearest_colour(PALETTE[name]) == name


@pytest.mark.parametrize(
    ("caption", "names"),
    [
        ('a blue sign that says "HOUSE" in white letters', ("blue", "white")),
        ('An orange wall that says "A" at the top', ("orange", None)),
        ('a sign that says "IN RED LETTERS"', (None, None)),
        ('a redwood sign that says "A" in dark letters', (None, None)),
        ("", (None, None)),
    ],
)
def test_colours_named_in_captions(caption, names):
    assert named_colours(caption) == names
