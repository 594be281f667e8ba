"""Reading order: rows from the top, each from the left."""

import itertools

from vlad.layout.polygons import box_polygon
from vlad.layout.reading_order import reading_order
from vlad.types import TextLine


def line(text, left, top, right, bottom):
    return TextLine(text, box_polygon(left, top, right, bottom))


def test_rows_from_the_top_each_from_the_left():
    lines = [
        line("A", 0.1, 0.11, 0.4, 0.2),
        line("B", 0.5, 0.10, 0.9, 0.2),  # a little higher, still the same row
        line("C", 0.0, 0.25, 0.3, 0.35),
        line("D", 0.6, 0.5, 0.9, 0.6),
    ]
    for order in itertools.permutations(lines):
        assert "".join(read.text for read in reading_order(order)) == "ABCD"


def test_a_tall_line_shares_the_row_of_a_low_one_beside_it():
    assert [x.text for x in reading_order([line("low", 0.5, 0.4, 0.9, 0.5), line("tall", 0, 0.3, 0.4, 0.6)])] == [
        "tall",
        "low",
    ]


def test_no_lines_give_no_lines():
    assert reading_order([]) == ()
