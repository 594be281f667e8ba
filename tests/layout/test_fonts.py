"""Fonts: every file is there, missing glyphs are known, letters stand in cells of one width."""

import numpy as np
import pytest

from vlad.errors import UserError
from vlad.layout.fonts import (
    CELL_WIDTH_EM,
    FONT_FILES,
    FONT_SIZES_PIXELS,
    font_path,
    font_size_for,
    has_glyph,
    ink_extent,
    line_mask,
    missing_glyphs,
    side_bearings,
)


@pytest.mark.parametrize("name", FONT_FILES)
def test_every_font_is_there_and_draws_latin_letters(name):
    assert font_path(name).is_file()
    assert missing_glyphs("HOUSE house 0123 ÄÖÜß", name) == ""


def test_an_unknown_font_is_named_with_a_suggestion():
    with pytest.raises(UserError, match=r"no font 'serif-bald'; Did you mean 'serif-bold'\?"):
        font_path("serif-bald")


def test_missing_glyphs_come_once_each_in_order():
    assert missing_glyphs("A中B国中 C") == "中国"
    assert has_glyph(" ")
    assert not has_glyph("\x07")


@pytest.mark.parametrize("name", FONT_FILES)
def test_cells_are_equally_wide_whatever_the_letter_and_the_font(name):
    cell = round(CELL_WIDTH_EM * FONT_SIZES_PIXELS[0])
    for text in ("I", "WWW", "ILLMQJ"):
        mask = line_mask(text, name)
        assert mask.width == cell * len(text)
        # The same height for all fonts: that of the canonical one.
        assert mask.height == line_mask(text).height


def test_a_letter_keeps_its_cell_whatever_stands_beside_it():
    cell = round(CELL_WIDTH_EM * FONT_SIZES_PIXELS[0])
    alone, within = np.asarray(line_mask("M")), np.asarray(line_mask("HMI"))
    assert np.array_equal(alone, within[:, cell : 2 * cell])


def test_the_extent_is_that_of_the_ink():
    top, bottom = ink_extent("HOUSE")
    assert 0.7 < top < 0.8
    assert -0.05 < bottom <= 0
    assert ink_extent("gy")[1] < -0.15
    assert ink_extent("   ") == (0.73, 0.0)


def test_side_bearings_are_the_empty_shares_at_both_ends():
    left, right = side_bearings("I")
    assert 0 < left < 0.5
    assert 0 < right < 0.5
    # The same empty columns are a tenth of the share in a line ten times as long.
    assert side_bearings("I" * 10)[0] == pytest.approx(left / 10)
    assert side_bearings("  ") == (0.0, 0.0)


def test_the_size_for_a_height_needs_no_enlarging_until_the_largest():
    assert font_size_for(1) == FONT_SIZES_PIXELS[0]
    for height in (10, 40, 100, 200):
        assert 0.7 * font_size_for(height) >= height
    assert font_size_for(5000) == FONT_SIZES_PIXELS[-1]
