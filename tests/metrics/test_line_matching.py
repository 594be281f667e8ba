"""Which wanted lines an engine reads: boxes of one row are joined, each box counts once, pieces are no readings."""

import pytest

from vlad.layout.polygons import box_polygon
from vlad.metrics.line_matching import match_lines
from vlad.types import TextLine


def box(text: str, left: float, top: float, right: float, bottom: float) -> TextLine:
    return TextLine(text, box_polygon(left, top, right, bottom))


def rows(*texts: str) -> list[TextLine]:
    return [box(text, 0.1, 0.1 + 0.2 * number, 0.9, 0.2 + 0.2 * number) for number, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("boxes", "wanted", "exact", "extra"),
    [
        (rows("Grand Hotel", "$5.50"), ["$5.50", "GRAND HOTEL"], [True, True], []),
        (rows("GRANDHOTEL"), ["Grand Hotel"], [True], []),
        (rows("Grand Motel"), ["Grand Hotel"], [False], []),
        ([], ["SALE"], [False], []),
        (rows("brick", "SALE"), ["SALE"], [True], ["brick"]),
        # A line that the engine splits, its second part first.
        ([box("HOTEL", 0.5, 0.1, 0.9, 0.21), box("GRAND", 0.1, 0.1, 0.45, 0.2)], ["GRAND HOTEL"], [True], []),
        # Not across rows: the line is broken.
        (rows("GRAND", "HOTEL"), ["GRAND HOTEL"], [False], ["HOTEL"]),
        # Said twice in one box: not what was asked for; in another box: the line, and something else.
        (rows("SALE SALE"), ["SALE"], [False], []),
        (rows("SALE", "SALE"), ["SALE"], [True], ["SALE"]),
        (rows("SALE"), ["SALE", "SALE"], [True, False], []),
        # Two lines side by side in one box, in either order; but only if both are exact.
        (rows("LEFT right"), ["right", "left"], [True, True], []),
        (rows("LEFT rigth"), ["right", "left"], [False, False], ["LEFT rigth"]),
        # The exact run is taken before a similar one.
        (rows("BOOKS", "BOOK"), ["BOOK", "BOOKS"], [True, True], []),
    ],
)
def test_lines_take_the_runs_of_boxes_that_are_nearest(
    boxes: list[TextLine], wanted: list[str], exact: list[bool], extra: list[str]
) -> None:
    found = match_lines(boxes, wanted)

    assert [line.is_exact for line in found.lines] == exact
    assert [other.text for other in found.extra] == extra
    assert found.is_exact == (all(exact) and not extra)


def test_edits_and_letter_case_are_counted_beside() -> None:
    found = match_lines(rows("Grand hotel", "SALX"), ["Grand Hotel", "SALE", "MISSING"]).lines

    assert [(line.edits, line.letters) for line in found] == [(0, 10), (1, 4), (7, 7)]
    assert [(line.is_exact, line.has_case) for line in found] == [(True, False), (False, False), (False, False)]
    assert [line.is_found for line in found] == [True, True, False]
