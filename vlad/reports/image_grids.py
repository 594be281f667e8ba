"""Image grids with captions, and images of layouts and glyph maps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from vlad.layout.fonts import load_font
from vlad.layout.glyph_map import render_glyph_map
from vlad.types import Layout

LINE_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")


@dataclass(frozen=True)
class GridRow:
    """One row of a grid: a caption and its images, left to right."""

    caption: str
    images: tuple[Image.Image, ...]


def glyph_map_image(glyph_map: np.ndarray) -> Image.Image:
    """A glyph map (H W, 0..1) as an image."""
    return Image.fromarray((np.clip(glyph_map, 0, 1) * 255).astype(np.uint8)).convert("RGB")


def layout_image(layout: Layout, width: int, height: int | None = None) -> Image.Image:
    """A layout as an image: its glyph map (square without a height) with the polygon of each line."""
    return overlay_polygons(glyph_map_image(render_glyph_map(layout, width, height or width)), layout)


def overlay_polygons(image: Image.Image, layout: Layout) -> Image.Image:
    """The image with the polygons of a layout's lines over it."""
    result = image.convert("RGB")
    canvas = ImageDraw.Draw(result)
    for number, line in enumerate(layout.lines):
        points = [(x * (result.width - 1), y * (result.height - 1)) for x, y in line.polygon]
        canvas.polygon(points, outline=LINE_COLOURS[number % len(LINE_COLOURS)])
    return result


def sample_grid(
    rows: Sequence[GridRow], headings: Sequence[str], cell_pixels: int = 160, columns: int = 2
) -> Image.Image:
    """Rows of captioned images under column headings, in at most `columns` blocks side by side."""
    columns = min(columns, len(rows))
    per_row = max(len(row.images) for row in rows)
    gap, text_height, heading_height = 6, 34, 20
    block_width = per_row * (cell_pixels + gap) + 2 * gap
    block_rows = -(-len(rows) // columns)
    grid = Image.new(
        "RGB", (columns * block_width, heading_height + block_rows * (cell_pixels + text_height + gap)), "white"
    )
    canvas = ImageDraw.Draw(grid)
    font = load_font("sans", 12)
    for block in range(columns):
        for number, heading in enumerate(headings):
            x = block * block_width + gap + number * (cell_pixels + gap)
            canvas.text((x, 3), heading, fill="#666666", font=font)
    for number, row in enumerate(rows):
        left = (number % columns) * block_width + gap
        top = heading_height + (number // columns) * (cell_pixels + text_height + gap)
        for place, image in enumerate(row.images):
            method = Image.Resampling.NEAREST if max(image.size) <= cell_pixels else Image.Resampling.LANCZOS
            enlarged = ImageOps.contain(image, (cell_pixels, cell_pixels), method)
            grid.paste(enlarged, (left + place * (cell_pixels + gap), top))
        width_characters = max(16, (per_row * (cell_pixels + gap)) // 7)
        caption = "\n".join(textwrap.wrap(row.caption, width_characters)[:2])
        canvas.multiline_text((left, top + cell_pixels + 2), caption, fill="black", font=font, spacing=2)
    return grid
