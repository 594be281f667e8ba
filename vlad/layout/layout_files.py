"""Layout files: reading, checking and writing layouts as JSON that people can edit.

    {"lines": [{"text": "HOUSE", "polygon": [[0.1, 0.4], [0.9, 0.4], [0.9, 0.6], [0.1, 0.6]]}]}

In place of `polygon` a line may give `box`: [left, top, right, bottom]. Coordinates are 0..1, y downwards.
Optional: `language`, `font`, `colour`, `valid`, `confidence`.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

from vlad.layout.fonts import font_path
from vlad.layout.polygons import box_polygon, polygon_area
from vlad.types import Layout, Polygon, TextLine
from vlad.utils.errors import UserError, as_sentence, did_you_mean
from vlad.utils.paths import existing_file

# Far above what curved text needs: a line is rendered along its polygon, point by point.
MAX_POLYGON_POINTS, MAX_LAYOUT_POINTS = 1_000, 20_000
LINE_FIELDS = ("text", "polygon", "box", "language", "font", "colour", "valid", "confidence")


def line_to_json(line: TextLine, exact: bool = False) -> dict[str, Any]:
    """The line as plain JSON values, without unset fields. Coordinates are rounded unless `exact`."""
    entry: dict[str, Any] = {
        "text": line.text,
        "polygon": [[x, y] if exact else [round(x, 5), round(y, 5)] for x, y in line.polygon],
    }
    for name in ("language", "font", "colour", "confidence"):
        if getattr(line, name) is not None:
            entry[name] = getattr(line, name)
    if not line.valid:
        entry["valid"] = False
    return entry


def layout_to_json(layout: Layout, exact: bool = False) -> dict[str, Any]:
    """The layout as plain JSON values. Coordinates are rounded unless `exact`."""
    return {"lines": [line_to_json(line, exact) for line in layout.lines]}


def layout_from_json(record: Any) -> Layout:
    """The layout in plain JSON values. Raises ValueError that names the line and the field."""
    if not isinstance(record, dict) or not isinstance(record.get("lines"), list):
        raise ValueError(
            'it is not an object with a list "lines"; write {"lines": [{"text": "HI", "box": [0.1, 0.4, 0.9, 0.6]}]}'
        )
    lines = tuple(_line_from_json(entry, number) for number, entry in enumerate(record["lines"], start=1))
    points = sum(len(line.polygon) for line in lines)
    if points > MAX_LAYOUT_POINTS:
        raise ValueError(f"its polygons have {points} points, over the limit of {MAX_LAYOUT_POINTS}; give them fewer")
    return Layout(lines)


def _line_from_json(entry: Any, number: int) -> TextLine:
    if not isinstance(entry, dict):
        raise ValueError(f"line {number} is not an object")
    for name in entry:
        if name not in LINE_FIELDS:
            raise ValueError(f"line {number} has an unknown field {name!r}.{did_you_mean(name, LINE_FIELDS)}")
    text = entry.get("text")
    if not isinstance(text, str):
        raise ValueError(f'line {number} has no text; give it a "text"')
    return TextLine(
        text=text,
        polygon=_polygon_from_json(entry, number),
        language=_optional_string(entry, "language", number),
        font=_optional_string(entry, "font", number),
        colour=_optional_string(entry, "colour", number),
        valid=_valid(entry, number),
        confidence=_optional_number(entry, "confidence", number),
    )


def _valid(entry: dict[str, Any], number: int) -> bool:
    value = entry.get("valid", True)
    if not isinstance(value, bool):
        raise ValueError(f"line {number}: valid must be true or false")
    return value


def _optional_string(entry: dict[str, Any], name: str, number: int) -> str | None:
    value = entry.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"line {number}: {name} must be a string")
    return value


def _optional_number(entry: dict[str, Any], name: str, number: int) -> float | None:
    value = entry.get(name)
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"line {number}: {name} must be a number") from None


def _polygon_from_json(entry: dict[str, Any], number: int) -> Polygon:
    try:
        if "box" in entry:
            left, top, right, bottom = (float(value) for value in entry["box"])
            polygon = box_polygon(left, top, right, bottom)
            is_empty = left >= right or top >= bottom
        else:
            polygon = tuple((float(x), float(y)) for x, y in entry["polygon"])
            is_empty = False
    except KeyError:
        raise ValueError(f'line {number} has neither "polygon" nor "box"') from None
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"line {number}: a polygon is a list of [x, y], a box is [left, top, right, bottom]") from None
    if is_empty:
        raise ValueError(
            f"line {number} covers no area: a box is [left, top, right, bottom] with left < right and top < bottom"
        )
    if len(polygon) > MAX_POLYGON_POINTS:
        raise ValueError(
            f"line {number}: its polygon has {len(polygon)} points, over the limit of {MAX_POLYGON_POINTS}"
        )
    if len(polygon) < 4 or not all(map(math.isfinite, itertools.chain(*polygon))):
        raise ValueError(f"line {number}: a polygon needs at least four finite points")
    return polygon


def read_layout(path: Path | str) -> Layout:
    """The layout in a file that a user wrote.

    Raises UserError for a missing file, for one that is not a layout or holds no text, and for a line without area or
    outside the image.
    """
    layout = read_layout_unchecked(path)
    check_layout(layout, str(path))
    return layout


def read_layout_unchecked(path: Path | str) -> Layout:
    """The layout in a file, which may hold no text: stage one writes such layouts for prompts without quoted strings.

    Raises UserError for a missing file and for one that is not a layout.
    """
    path = existing_file(path, "layout file", 'write one like {"lines": [{"text": "HI", "box": [0.1, 0.4, 0.9, 0.6]}]}')
    try:
        return layout_from_json(json.loads(path.read_text(encoding="utf-8")))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a layout: it is not UTF-8 text; give a JSON file.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a layout: {as_sentence(str(error)[:300])}") from error


def check_layout(layout: Layout, where: str) -> None:
    """Raises UserError for a layout without text, and for a line without text, without area or outside the image.

    `where` is its file or the option that gave it, for the message.
    """
    if not any(line.text.strip() for line in layout.lines):
        raise UserError(f'{where} holds no text; give at least one line its "text".')
    for number, line in enumerate(layout.lines, start=1):
        if not line.text.strip():
            raise UserError(f"{where}: line {number} has no text; give it some, or remove the line.")
        if line.font is not None:
            try:
                font_path(line.font)
            except UserError as error:
                raise UserError(f"{where}: line {number} ({line.text!r}): {error}") from error
        if polygon_area(line.polygon) <= 1e-6:
            raise UserError(f"{where}: line {number} ({line.text!r}) covers no area; move its corners apart.")
        if not all(-1e-3 <= value <= 1 + 1e-3 for point in line.polygon for value in point):
            raise UserError(
                f"{where}: line {number} ({line.text!r}) is outside the image; coordinates are shares of the"
                " image's width and height, 0 to 1."
            )


def write_layout(layout: Layout, path: Path | str) -> None:
    """Writes a layout file, one line of text per line."""
    lines = ",\n  ".join(json.dumps(line_to_json(line), ensure_ascii=False) for line in layout.lines)
    written = f'{{"lines": [\n  {lines}\n]}}\n' if lines else '{"lines": []}\n'
    Path(path).write_text(written, encoding="utf-8")
