"""Spelling accuracy of OCR lines made by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlad.layout.polygons import box_polygon
from vlad.metrics.spelling import letter_accuracy, levenshtein, spells_exactly, word_accuracy
from vlad.types import TextLine


def line(text, top=0.4, left=0.1):
    return TextLine(text, box_polygon(left, top, left + 0.3, top + 0.1))


def test_case_and_white_space_are_ignored():
    assert spells_exactly([line("ho use")], ["HOUSE"])
    assert spells_exactly([line("STRASSE")], ["Straße"])
    assert spells_exactly([line("NEW"), line("YORK", left=0.5)], ["NEW YORK"])


def test_every_letter_counts():
    assert not spells_exactly([line("H0USE")], ["HOUSE"])
    assert not spells_exactly([line("HOUSES")], ["HOUSE"])
    assert not spells_exactly([], ["HOUSE"])
    assert not spells_exactly([line("HOUSE"), line("X", top=0.8)], ["HOUSE"])
    assert spells_exactly([], [])


def test_lines_are_concatenated_in_reading_order():
    lines = [line("C", top=0.6), line("B", left=0.5, top=0.41), line("A", top=0.4)]
    assert spells_exactly(lines, ["A", "B", "C"])
    assert not spells_exactly(lines, ["C", "B", "A"])


def test_shares_over_many_images():
    readings = [[line("HOUSE")], [line("GARDEM")], []]
    wanted = [["HOUSE"], ["GARDEN"], ["TREE"]]
    assert word_accuracy(readings, wanted) == pytest.approx(1 / 3)
    assert letter_accuracy(readings, wanted) == pytest.approx(1 - (0 + 1 + 4) / 15)


def test_an_image_full_of_letters_scores_zero_not_less():
    readings = [[line("X" * 100)], [line("AB")]]
    assert letter_accuracy(readings, [["AB"], ["AB"]]) == pytest.approx(0.5)


def test_perfect_readings_score_one():
    readings, wanted = [[line("A")], [line("BC")]], [["A"], ["BC"]]
    assert word_accuracy(readings, wanted) == letter_accuracy(readings, wanted) == 1


@pytest.mark.parametrize(
    ("a", "b", "edits"),
    [("", "", 0), ("abc", "", 3), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("ab", "ba", 2)],
)
def test_levenshtein(a, b, edits):
    assert levenshtein(a, b) == edits


short = st.text("abc", max_size=7)


@given(short, short, short)
def test_levenshtein_is_a_distance(a, b, c):
    assert levenshtein(a, b) == levenshtein(b, a)
    assert (levenshtein(a, b) == 0) == (a == b)
    assert levenshtein(a, c) <= levenshtein(a, b) + levenshtein(b, c)
    assert abs(len(a) - len(b)) <= levenshtein(a, b) <= max(len(a), len(b))
