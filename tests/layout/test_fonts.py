"""Fonts: every file exists, missing glyphs are found, letters stand in cells of equal width."""

import numpy as np
import pytest

from vlad.layout.fonts import (
    CANONICAL_FONT,
    CELL_WIDTH_EM,
    FONT_FILES,
    FONT_SIZES_PIXELS,
    PROPORTIONAL_FONT,
    _found_fonts,
    font_for,
    font_path,
    font_size_for,
    has_font,
    has_glyph,
    ink_extent,
    line_mask,
    missing_font_reason,
    missing_glyphs,
    side_bearings,
)
from vlad.layout.scripts import SIMPLE, script_of
from vlad.utils.errors import UserError


@pytest.fixture
def only_bundled_fonts(monkeypatch):
    """As on a machine without Noto's fonts, whatever this one has."""
    monkeypatch.setattr("vlad.layout.fonts._found_fonts", dict)
    for cached in (font_for, line_mask):
        cached.cache_clear()
    yield
    for cached in (font_for, line_mask):
        cached.cache_clear()


def columns(mask):
    """Ink of each column, 0..1."""
    return np.asarray(mask).mean(axis=0) / 255


def test_the_script_of_a_text_is_that_of_its_letters():
    for text, script in (
        ("HOUSE 12!", SIMPLE),
        ("ΑΘΗΝΑ", SIMPLE),
        ("ПЕКАРНЯ", SIMPLE),
        ("SALE مرحبا", "Arabic"),
        ("שלום", "Hebrew"),
        ("नमस्ते", "Devanagari"),
        ("สวัสดี", "Thai"),
        ("欢迎", "Han"),
        ("東京へようこそ", "Kana"),
        ("환영", "Hangul"),
        ("！", "Han"),
        ("", SIMPLE),
    ):
        assert script_of(text) == script


def test_arabic_letters_join_and_run_from_the_right(only_bundled_fonts):
    assert font_for("سلام") == "sans-bold"
    assert missing_glyphs("سلام") == ""
    # Joined: seen, lam, alef are one piece of ink; with a joiner that forbids it they are three.
    assert (columns(line_mask("سلا")) > 0).all()
    assert not (columns(line_mask("س\u200cل\u200cا")) > 0).all()
    # Alef, a stroke as high as the line, is written last and stands on the left.
    mask = np.asarray(line_mask("بببا")) > 127
    heights = mask.sum(axis=0)
    assert heights[: mask.shape[1] // 6].max() > 0.7 * mask.shape[0]
    assert heights[mask.shape[1] // 2 :].max() < 0.7 * mask.shape[0]


def test_hebrew_runs_from_the_right(only_bundled_fonts):
    first, both = line_mask("ש"), line_mask("שו")
    end = np.asarray(both)[:, -first.width :]
    assert first.width < both.width
    assert np.abs(end.astype(int) - np.asarray(first.resize(end.shape[::-1]))).mean() < 30


@pytest.mark.parametrize(
    ("text", "name"), [("नमस्ते", "noto-devanagari"), ("สวัสดี", "noto-thai"), ("欢迎", "noto-cjk"), ("환영", "noto-cjk")]
)
def test_a_missing_font_is_reported_with_its_package(only_bundled_fonts, text, name):
    assert missing_glyphs(text)
    assert "Noto's fonts (Debian: fonts-noto-c" in missing_font_reason(text)
    with pytest.raises(UserError, match="VLAD_FONTS"):
        font_path(name)


def test_a_character_without_a_font_that_has_the_others_too_is_reported(only_bundled_fonts):
    assert missing_font_reason("A\U00012000") == "no installed font has \U00012000 and the rest of the text; replace it"


def test_fonts_are_searched_for_in_the_folders_of_vlad_fonts(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "NotoSansThai-Bold.ttf").write_bytes(font_path("sans").read_bytes())
    monkeypatch.setenv("VLAD_FONTS", str(tmp_path))
    _found_fonts.cache_clear()
    try:
        assert has_font("noto-thai")
        assert not has_font("noto-cjk")
    finally:
        monkeypatch.undo()
        _found_fonts.cache_clear()


@pytest.mark.skipif(not has_font("noto-cjk"), reason="Noto Sans CJK is not installed")
def test_east_asian_lines_run_top_to_bottom_on_request():
    across, down = line_mask("欢迎光临"), line_mask("欢迎光临", vertical=True)
    assert across.width > 3 * across.height
    assert down.height > 3 * down.width


@pytest.mark.skipif(not has_font("noto-devanagari"), reason="Noto Sans Devanagari is not installed")
def test_devanagari_marks_join_their_letters():
    # The vowel sign of ki is typed after its letter and drawn before it.
    assert line_mask("कि").width > line_mask("क").width
    # A conjunct is narrower than its letters side by side.
    assert line_mask("स्त").width < line_mask("स").width + line_mask("त").width


def test_a_script_that_needs_libraqm_is_refused_without_it(only_bundled_fonts, monkeypatch):
    monkeypatch.setattr("vlad.layout.fonts.features.check", lambda name: False)
    with pytest.raises(UserError, match="Arabic and has to be shaped, and this Pillow has no libraqm"):
        line_mask("مرحبا")


@pytest.mark.parametrize("name", FONT_FILES)
def test_every_bundled_font_exists_and_has_latin_letters(name):
    assert font_path(name).is_file()
    assert missing_glyphs("HOUSE house 0123 ÄÖÜß", name) == ""


def test_an_unknown_font_is_reported_with_a_suggestion():
    with pytest.raises(UserError, match=r"no font 'serif-bald'; Did you mean 'serif-bold'\?"):
        font_path("serif-bald")


def test_missing_glyphs_are_listed_once_each_in_order(only_bundled_fonts):
    assert missing_glyphs("A中B国中 C", CANONICAL_FONT) == "中国"
    assert missing_glyphs("中") == "中"
    assert has_glyph(" ")
    assert not has_glyph("\x07")


@pytest.mark.parametrize("name", [name for name in FONT_FILES if name != PROPORTIONAL_FONT])
def test_cells_are_equally_wide_whatever_the_letter_and_the_font(name):
    cell = round(CELL_WIDTH_EM * FONT_SIZES_PIXELS[0])
    for text in ("I", "WWW", "ILLMQJ"):
        mask = line_mask(text, name)
        assert mask.width == cell * len(text)
        # The same height for all fonts: that of the canonical one.
        assert mask.height == line_mask(text).height


def test_proportional_letters_have_widths_of_their_own_and_fill_the_line_to_its_ends():
    narrow, wide = line_mask("illi", PROPORTIONAL_FONT), line_mask("WMWM", PROPORTIONAL_FONT)
    assert wide.width > 2 * narrow.width
    for mask in (narrow, wide):
        assert mask.getbbox() == (0, 0, *mask.size)
    assert max(side_bearings("illi", PROPORTIONAL_FONT)) < 0.05


def test_a_letter_keeps_its_cell_whatever_its_neighbours():
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


def test_the_font_size_for_a_height_needs_no_upscaling_up_to_the_largest():
    assert font_size_for(1) == FONT_SIZES_PIXELS[0]
    for height in (10, 40, 100, 200):
        assert 0.7 * font_size_for(height) >= height
    assert font_size_for(5000) == FONT_SIZES_PIXELS[-1]
