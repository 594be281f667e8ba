"""The canvas of the page: layouts as plain JSON values one way, checked ones the other."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vlad.data.signs import PALETTE, STYLE_FONTS
from vlad.layout.layout_files import check_layout, layout_from_json, line_to_json
from vlad.types import Layout
from vlad.utils.errors import UserError, as_sentence

TEMPLATE = '<div class="canvas"></div><div class="lines"></div><button type="button" class="add"></button>'
SCRIPT = (Path(__file__).parent / "canvas.js").read_text(encoding="utf-8")
STYLE = (Path(__file__).parent / "canvas.css").read_text(encoding="utf-8")
COLOURS = tuple(PALETTE)
FONTS = STYLE_FONTS
MOST_LINES = 64
MOST_LETTERS = 500  # of a line; the model has a limit of its own
PREVIEW_PIXELS = 512  # the longer side of an image shown under the lines


@dataclass(frozen=True)
class CanvasState:
    """A canvas: its lines (those without text, too) and the size in pixels of the image that it stands for."""

    layout: Layout
    width: int
    height: int
    # The quoted strings of the prompt that it was planned for; None for lines that a person made.
    strings: tuple[str, ...] | None = None


def canvas_value(canvas: CanvasState, image: Image.Image | None = None) -> dict[str, Any]:
    """The canvas as the page takes it, over an image or blank."""
    return {
        "width": canvas.width,
        "height": canvas.height,
        "image": None if image is None else _preview(image),
        "strings": None if canvas.strings is None else list(canvas.strings),
        "lines": [{"colour": None, "font": None, **line_to_json(line)} for line in canvas.layout.lines],
    }


def same_lines_value(strings: tuple[str, ...] | None) -> dict[str, Any]:
    """The value that leaves a canvas's lines and ties them to a prompt of these strings (None: to any)."""
    return {"strings": None if strings is None else list(strings), "lines": None}


def canvas_state(value: Any, may_be_blank: bool = False) -> CanvasState:
    """The canvas as the page sends it. Raises UserError for a value that is none.

    `may_be_blank`: lines may have no text.
    """
    if not isinstance(value, dict) or not isinstance(value.get("lines"), list):
        raise UserError("The canvas holds no lines that can be read; reload the page.")
    if len(value["lines"]) > MOST_LINES:
        raise UserError(f"The canvas holds {len(value['lines'])} lines; {MOST_LINES} are the most.")
    fields = ("text", "polygon", "colour", "font", "language")
    try:
        lines = [{name: line[name] for name in fields if line.get(name) is not None} for line in value["lines"]]
        layout = layout_from_json({"lines": lines})
        width, height = int(value["width"]), int(value["height"])
        strings = value.get("strings")
        strings = None if strings is None else tuple(map(str, strings))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"The canvas cannot be read: {as_sentence(str(error)[:200])}") from error
    for number, line in enumerate(layout.lines, start=1):
        if len(line.text) > MOST_LETTERS:
            raise UserError(f"Line {number} has {len(line.text)} letters; {MOST_LETTERS} are the most.")
        if not line.text.strip() and not may_be_blank:
            raise UserError(f"Line {number} has no text; give it some, or remove it.")
    with_text = Layout(tuple(line for line in layout.lines if line.text.strip()))
    if with_text.lines:
        check_layout(with_text, "The canvas")
    return CanvasState(layout, width, height, strings)


def _preview(image: Image.Image) -> str:
    preview = image.copy()
    preview.thumbnail((PREVIEW_PIXELS, PREVIEW_PIXELS))
    buffer = io.BytesIO()
    preview.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
