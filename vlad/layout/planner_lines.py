"""Layouts from elsewhere: boxes on the command line, planner lines of TextDiffuser-2.

SALE@0.1,0.1,0.9,0.3                  left, top, right, bottom; shares of the image
SALE@0.1,0.1,0.9,0.2,0.9,0.4,0.1,0.3  a polygon: x, y of four points or more
sale 12,20,110,38                     TextDiffuser-2: left, top, right, bottom on a grid of 128
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from vlad.layout.layout_files import check_layout
from vlad.layout.polygons import box_polygon
from vlad.types import Layout, TextLine
from vlad.utils.errors import UserError
from vlad.utils.paths import existing_file

PLANNER_GRID = 128  # arXiv 2311.16465: coordinates of the planner's lines
_PLANNER_LINE = re.compile(r"(.*\S)\s+(-?\d+)\s*,\s*(-?\d+)\s*,\s*(-?\d+)\s*,\s*(-?\d+)")


def parse_line_options(lines: Sequence[str]) -> Layout:
    """The layout of `TEXT@NUMBERS` lines. Raises UserError for a line that is none."""
    return Layout(tuple(map(_line_of, lines)))


def _line_of(said: str) -> TextLine:
    text, _, numbers = said.rpartition("@")
    try:
        values = [float(value) for value in numbers.split(",")]
    except ValueError:
        values = []
    wrong = len(values) != 4 and (len(values) < 8 or len(values) % 2)
    if not text.strip() or wrong or not all(map(math.isfinite, values)):
        raise UserError(
            f"--line {said!r} is no line; write TEXT@LEFT,TOP,RIGHT,BOTTOM with shares of the image, like"
            " 'SALE@0.1,0.1,0.9,0.3', or x,y of four points or more."
        )
    if len(values) == 4:
        left, top, right, bottom = values
        if not (left < right and top < bottom):
            raise UserError(f"--line {said!r} covers no area: left must be under right, and top under bottom.")
        return TextLine(text.strip(), box_polygon(left, top, right, bottom))
    return TextLine(text.strip(), tuple(zip(values[::2], values[1::2], strict=True)))


def read_planner_file(path: Path | str) -> Layout:
    """The layout of a file of TextDiffuser-2's planner lines. Raises UserError for a line that is none."""
    path = existing_file(path, "planner file", "write a line like: sale 12,20,110,38")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} holds no planner lines: it is not UTF-8 text.") from error
    lines = [_planned_line(said, f"{path}, line {number}") for number, said in enumerate(text.splitlines(), start=1)]
    layout = Layout(tuple(line for line in lines if line is not None))
    check_layout(layout, str(path))
    return layout


def _planned_line(said: str, place: str) -> TextLine | None:
    """The line of a planner; None for an empty one."""
    if not said.strip():
        return None
    match = _PLANNER_LINE.fullmatch(said.strip())
    if match is None:
        raise UserError(f"{place}: {said.strip()[:80]!r} is not TEXT LEFT,TOP,RIGHT,BOTTOM on a grid of 128.")
    # A language model plans past the edge now and then.
    left, top, right, bottom = (min(max(int(value) / PLANNER_GRID, 0.0), 1.0) for value in match.groups()[1:])
    if not (left < right and top < bottom):
        raise UserError(f"{place}: {said.strip()[:80]!r} covers no area inside the image; move its corners apart.")
    return TextLine(match.group(1), box_polygon(left, top, right, bottom))
