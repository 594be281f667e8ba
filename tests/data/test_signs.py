"""Rendered signs: exact polygons, reproducible, without held-out words, with captions that parse back."""

import dataclasses
import itertools

import numpy as np
import pytest

from vlad.data.options import SyntheticOptions
from vlad.data.signs import (
    CARRIERS,
    MINIMUM_CONTRAST,
    PALETTE,
    STYLE_FONTS,
    readable_text_colours,
    relative_luminance,
    render_sign,
)
from vlad.data.words import held_out_words
from vlad.layout.polygons import bounding_box
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.utils.errors import UserError

COUNT = 2000
OPTIONS = SyntheticOptions(size_pixels=16)


@pytest.fixture(scope="module")
def signs():
    return [render_sign(OPTIONS, index) for index in range(COUNT)]


def test_ink_is_inside_the_polygons_and_fills_their_height():
    options = SyntheticOptions(size_pixels=192, ground_share=0, line_shares=(0.4, 0.3, 0.3))
    for index in range(40):
        sign = render_sign(options, index)
        ground = sign.image[0, 0].astype(int)  # plain grounds have one colour
        ink = np.abs(sign.image.astype(int) - ground).max(axis=-1) > 0
        for line in sign.layout.lines:
            left, top, right, bottom = (value * 192 for value in bounding_box(line.polygon))
            window = slice(int(top), int(np.ceil(bottom))), slice(int(left), int(np.ceil(right)))
            rows = np.flatnonzero(ink[window].any(axis=1))
            assert rows[-1] - rows[0] + 1 >= 0.85 * (bottom - top)
            ink[window] = False
        assert not ink.any()


def test_lines_are_inside_the_image_and_do_not_overlap(signs):
    for sign in signs:
        boxes = [bounding_box(line.polygon) for line in sign.layout.lines]
        assert all(0 <= value <= 1 for box in boxes for value in box)
        assert all(above[3] < below[1] for above, below in itertools.pairwise(boxes))


def test_a_sign_depends_on_options_seed_and_index_alone(signs):
    later = render_sign(dataclasses.replace(OPTIONS, count=5), 7)
    assert np.array_equal(later.image, signs[7].image)
    assert (later.caption, later.layout, later.key) == (signs[7].caption, signs[7].layout, signs[7].key)
    other_seed = render_sign(dataclasses.replace(OPTIONS, seed=1), 7)
    assert other_seed.caption != later.caption
    assert len({sign.key for sign in signs}) == COUNT


def test_held_out_words_are_never_rendered(signs):
    held_out = set(held_out_words())
    assert not any(line.text in held_out for sign in signs for line in sign.layout.lines)


def test_random_strings_are_checked_against_the_held_out_words(monkeypatch):
    """With strings of one letter and all letters but Q held out, only Q is left."""
    letters = tuple("ABCDEFGHIJKLMNOPRSTUVWXYZ")
    monkeypatch.setattr("vlad.data.signs.held_out_words", lambda: letters)
    options = dataclasses.replace(OPTIONS, min_letters=1, max_letters=1, random_string_share=1.0, digit_share=0.0)
    assert {line.text for index in range(20) for line in render_sign(options, index).layout.lines} == {"Q"}


def test_captions_parse_back(signs):
    for sign in signs:
        prompt = parse_prompt(sign.caption)
        assert prompt.strings == tuple(line.text for line in sign.layout.lines)
        assert prompt.phrases[0].text == sign.objects[0].phrase


def test_every_text_colour_contrasts_with_its_background(signs):
    for sign in signs:
        ground = sign.caption.split()[1]
        ink = sign.layout.lines[0].colour
        low, high = sorted(relative_luminance(PALETTE[name]) for name in (ground, ink))
        assert (high + 0.05) / (low + 0.05) >= MINIMUM_CONTRAST
    assert all(len(readable_text_colours(ground)) >= 2 for ground in PALETTE)


def test_luminance_is_wcags():
    assert relative_luminance((0, 0, 0)) == 0
    assert relative_luminance((255, 255, 255)) == pytest.approx(1)
    assert relative_luminance((255, 0, 0)) == pytest.approx(0.2126)


def share(signs, condition):
    return sum(map(condition, signs)) / len(signs)


def test_shares_are_those_of_the_options(signs):
    # Four standard deviations of 2,000 draws are at most 0.045.
    for lines, expected in zip((1, 2, 3), OPTIONS.line_shares, strict=True):
        assert share(signs, lambda s, n=lines: len(s.layout.lines) == n) == pytest.approx(expected, abs=0.045)
    assert share(signs, lambda s: " letters" in s.caption) == pytest.approx(OPTIONS.colour_named_share, abs=0.045)
    placed = share(signs, lambda s: any(row in s.caption for row in ("at the top", "in the middle", "at the bottom")))
    assert placed == pytest.approx(OPTIONS.place_named_share, abs=0.045)
    assert share(signs, lambda s: s.caption.split()[2] != "sign") == pytest.approx(OPTIONS.ground_share, abs=0.045)


def test_every_choice_occurs(signs):
    assert {sign.caption.split()[1] for sign in signs} == set(PALETTE)
    assert {sign.caption.split()[2] for sign in signs} == set(CARRIERS)
    assert {line.font for sign in signs for line in sign.layout.lines} == set(STYLE_FONTS)
    lengths = {len(line.text) for sign in signs for line in sign.layout.lines}
    assert lengths == set(range(OPTIONS.min_letters, OPTIONS.max_letters + 1))


def test_given_words_are_rendered_in_turn():
    words = ("HOUSE", "GARDEN")
    drawn = [render_sign(OPTIONS, index, words).layout.lines for index in range(4)]
    assert [line.text for lines in drawn for line in lines] == ["HOUSE", "GARDEN", "HOUSE", "GARDEN"]


@pytest.mark.parametrize(
    "mistake",
    [
        {"min_letters": 0},
        {"min_letters": 9, "max_letters": 8},
        {"size_pixels": 8},
        {"count": 0},
        {"line_shares": (0.5, 0.1, 0.1)},
        {"line_shares": (1.5, -0.5, 0.0)},
        {"max_letters": 100000},
        {"size_pixels": 100000},
        {"seed": -1},
        {"max_letter_width": 0.0},
        {"max_letter_width": 1.5},
        {"size_jitter": 1.0},
        {"min_letter_aspect": 2.0},
        {"max_letter_aspect": 1e9},
        {"place_jitter": -0.1},
        {"random_string_share": 1.1},
        {"digit_share": -0.1},
        {"ground_share": 2.0},
        {"colour_named_share": -1.0},
        {"place_named_share": 5.0},
        {"min_letters": 40, "max_letters": 41},  # no word is so long
    ],
)
def test_invalid_options_are_refused(mistake):
    with pytest.raises(UserError, match=r"data\.synthetic"):
        SyntheticOptions(**mistake)


@pytest.mark.parametrize(
    "extreme",
    [
        {"max_letters": 64, "min_letters": 1},
        {"max_letter_width": 1.0, "size_jitter": 0.0, "min_letter_aspect": 10.0, "max_letter_aspect": 10.0},
        {"max_letter_width": 0.001, "place_jitter": 1.0},
        {"min_letters": 40, "max_letters": 41, "random_string_share": 1.0, "digit_share": 1.0},
    ],
)
def test_options_at_their_limits_render(extreme):
    options = SyntheticOptions(size_pixels=16, line_shares=(0.0, 0.0, 1.0), **extreme)
    for index in range(10):
        for line in render_sign(options, index).layout.lines:
            assert all(0 <= value <= 1 for point in line.polygon for value in point)
