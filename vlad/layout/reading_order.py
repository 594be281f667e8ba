"""Reading order of lines of text: row by row from the top, each row from the left."""

from __future__ import annotations

from collections.abc import Iterable

from vlad.layout.polygons import bounding_box
from vlad.types import TextLine


def reading_order(lines: Iterable[TextLine]) -> tuple[TextLine, ...]:
    """The lines in reading order."""
    return tuple(line for row in text_rows(lines) for line in row)


def text_rows(lines: Iterable[TextLine]) -> list[list[TextLine]]:
    """The rows that the lines stand in, from the top, each from the left.

    A line belongs to a row where it overlaps the row's first line by more than half of the lower of both heights.
    """
    rows: list[list[TextLine]] = []
    for line in sorted(lines, key=_centre_height):
        if rows and _share_a_row(rows[-1][0], line):
            rows[-1].append(line)
        else:
            rows.append([line])
    return [sorted(row, key=lambda line: bounding_box(line.polygon)[0]) for row in rows]


def _centre_height(line: TextLine) -> float:
    _, top, _, bottom = bounding_box(line.polygon)
    return (top + bottom) / 2


def _share_a_row(a: TextLine, b: TextLine) -> bool:
    _, top_a, _, bottom_a = bounding_box(a.polygon)
    _, top_b, _, bottom_b = bounding_box(b.polygon)
    overlap = min(bottom_a, bottom_b) - max(top_a, top_b)
    return overlap > 0.5 * min(bottom_a - top_a, bottom_b - top_b)
