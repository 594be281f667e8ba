"""Layouts from text: `--line` options of the command line, and TextDiffuser-2's planner files.

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
from vlad.utils.text_lines import split_lines

PLANNER_GRID = 128  # arXiv 2311.16465: coordinates of the planner's lines
_PLANNER_LINE = re.compile(r"(.*\S)\s+(-?\d+)\s*,\s*(-?\d+)\s*,\s*(-?\d+)\s*,\s*(-?\d+)")


def parse_line_options(lines: Sequence[str]) -> Layout:
    """The layout in `TEXT@NUMBERS` options. Raises UserError for an option of another form."""
    return Layout(tuple(map(_parse_line_option, lines)))


def _parse_line_option(option: str) -> TextLine:
    text, _, numbers = option.rpartition("@")
    try:
        values = [float(value) for value in numbers.split(",")]
    except ValueError:
        values = []
    wrong = len(values) != 4 and (len(values) < 8 or len(values) % 2)
    if not text.strip() or wrong or not all(map(math.isfinite, values)):
        raise UserError(
            f"--line {option!r} is not TEXT@LEFT,TOP,RIGHT,BOTTOM; give shares of the image, like"
            " 'SALE@0.1,0.1,0.9,0.3', or x,y of four points or more."
        )
    if len(values) == 4:
        left, top, right, bottom = values
        if not (left < right and top < bottom):
            raise UserError(
                f"--line {option!r} covers no area: left must be less than right, and top less than bottom."
            )
        return TextLine(text.strip(), box_polygon(left, top, right, bottom))
    return TextLine(text.strip(), tuple(zip(values[::2], values[1::2], strict=True)))


def read_planner_file(path: Path | str) -> Layout:
    """The layout in a file of TextDiffuser-2's planner lines. Raises UserError for a line of another form."""
    path = existing_file(path, "planner file", "write a line like: sale 12,20,110,38")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} holds no planner lines: it is not UTF-8 text.") from error
    lines = [
        _parse_planner_line(line, f"{path}, line {number}") for number, line in enumerate(split_lines(text), start=1)
    ]
    layout = Layout(tuple(line for line in lines if line is not None))
    check_layout(layout, str(path))
    return layout


def _parse_planner_line(written: str, place: str) -> TextLine | None:
    """A line of text of a planner file; None for an empty line."""
    if not written.strip():
        return None
    match = _PLANNER_LINE.fullmatch(written.strip())
    if match is None:
        raise UserError(f"{place}: {written.strip()[:80]!r} is not TEXT LEFT,TOP,RIGHT,BOTTOM on a grid of 128.")
    # The planner is a language model, and sometimes plans beyond the edge.
    left, top, right, bottom = (min(max(int(value) / PLANNER_GRID, 0.0), 1.0) for value in match.groups()[1:])
    if not (left < right and top < bottom):
        raise UserError(f"{place}: {written.strip()[:80]!r} covers no area inside the image; move its corners apart.")
    return TextLine(match.group(1), box_polygon(left, top, right, bottom))
