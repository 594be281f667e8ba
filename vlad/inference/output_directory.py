"""Output directory of sampling: images, layouts, contact sheets and an index.

OUT/0000-a-blue-sign-that-says-house-s7.png        number of the prompt, its words, the seed; its recipe inside
OUT/layouts/0000-....json, 0000-....png            the layout between the stages: to edit, and to look at
OUT/layouts/0000-...-plan.png                      the raw glyph map of stage one, before refit
OUT/grids/grid.png, grid-2.png ...                 prompts, layouts and images side by side, 32 a sheet
OUT/index.jsonl                                    a line an image: its files and its recipe
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlad.inference.recipes import Recipe, read_recipe, recipe_to_json, save_image
from vlad.layout.layout_files import layout_to_json, read_layout_unchecked, write_layout
from vlad.reports.image_grids import GridRow, glyph_map_image, layout_image, overlay_polygons, sample_grid
from vlad.types import Layout
from vlad.utils.atomic_files import replaced_file
from vlad.utils.errors import UserError
from vlad.utils.json_objects import parse_object, read_object
from vlad.utils.paths import is_file, writable_directory
from vlad.utils.text_lines import split_lines

SHEET_IMAGES = 32
OVERLAY_PIXELS = 256  # smaller images are enlarged under their polygons


class OutputDirectory:
    """The files of a call. Raises UserError for a directory that cannot be written or has too little room."""

    def __init__(self, path: Path, needed_bytes: int) -> None:
        self.path, self.added = path, 0
        for folder in (path, path / "layouts", path / "grids"):
            writable_directory(folder, "images", needed_bytes)

    def image_file(self, name: str) -> Path:
        return self.path / f"{name}.png"

    def layout_file(self, name: str) -> Path:
        return self.path / "layouts" / f"{name}.json"

    def _overlay_file(self, name: str) -> Path:
        return self.path / "layouts" / f"{name}.png"

    def _plan_file(self, name: str) -> Path:
        return self.path / "layouts" / f"{name}-plan.png"

    def check_names(self, names: Sequence[str]) -> None:
        """Raises UserError for a folder, pipe or device that has the name of a file which is to be written."""
        kinds = (self.image_file, self.layout_file, self._overlay_file, self._plan_file)
        for path in (self.path / "index.jsonl", *(kind(name) for name in names for kind in kinds)):
            if path.exists() and not path.is_file():
                raise UserError(f"{path} is not a file; rename it, or name another directory with --out.")

    def has_image(self, name: str, recipe: Recipe) -> bool:
        """Whether the image is there already. Raises UserError where one of another recipe has its name."""
        path = self.image_file(name)
        if not path.is_file():
            return False
        if differing := _differences(read_recipe(path).identity(), recipe.identity()):
            raise UserError(
                f"{path} has another recipe ({', '.join(differing)}); add --overwrite to replace it, or name another"
                " directory with --out."
            )
        return True

    def has_layout(self, name: str, layout: Layout | None) -> bool:
        """Whether the layout file is there already; a planned one (None) may have been edited since.

        Raises UserError where a given one is not what is there.
        """
        path = self.layout_file(name)
        if not path.is_file():
            return False
        if layout is not None and not _holds(path, layout):
            raise UserError(f"{path} is another layout; add --overwrite to replace it, or name another --out.")
        return True

    @contextmanager
    def open_index(self, names: Sequence[str]) -> Iterator[None]:
        """Within it `write_image` adds lines to the index; at the end each image has one line, in order."""
        self._index = (self.path / "index.jsonl").open("a", encoding="utf-8")
        try:
            yield
        finally:
            self._index.close()
            self._tidy_index(names)

    def write_image(self, name: str, image: Image.Image, recipe: Recipe, glyph_map: np.ndarray | None) -> None:
        """Writes an image with its layout and its line of the index. `glyph_map`: stage one's, where it ran."""
        self.write_layout(name, recipe.layout, glyph_map, image.size, image)
        save_image(image, recipe, self.image_file(name))  # last: where the image is, all of its files are
        entry = {"image": f"{name}.png", "layout_file": f"layouts/{name}.json", **recipe_to_json(recipe)}
        self._index.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._index.flush()
        self.added += 1

    def write_layout(
        self,
        name: str,
        layout: Layout,
        glyph_map: np.ndarray | None,
        size: tuple[int, int],
        image: Image.Image | None = None,
    ) -> None:
        """Writes a layout as JSON and rendered, over the image where there is one; and stage one's raw glyph map."""
        write_layout(layout, self.layout_file(name))
        plan = self._plan_file(name)
        plan.unlink(missing_ok=True)  # of an image that is overwritten
        if glyph_map is not None:
            glyph_map_image(glyph_map).save(plan)
        factor = max(1, round(OVERLAY_PIXELS / max(size)))
        enlarged = size[0] * factor, size[1] * factor
        rendered = (
            layout_image(layout, *enlarged) if image is None else overlay_polygons(image.resize(enlarged), layout)
        )
        rendered.save(self._overlay_file(name))

    def write_contact_sheets(self, captions: Sequence[tuple[str, str]], layout_only: bool) -> None:
        """Sheets of the images' files, by name and caption; a column of raw plans where stage one made some."""
        for page, start in enumerate(range(0, len(captions), SHEET_IMAGES), start=1):
            on_page = captions[start : start + SHEET_IMAGES]
            with_plans = any(self._plan_file(name).is_file() for name, _ in on_page)
            rows = [GridRow(caption, self._cells(name, layout_only, with_plans)) for name, caption in on_page]
            heads = ["raw plan"] * with_plans + ["layout"] + ["image"] * (not layout_only)
            sheet = sample_grid(rows, heads, cell_pixels=128)
            sheet.save(self.path / "grids" / (f"grid-{page}.png" if page > 1 else "grid.png"))

    def _cells(self, name: str, layout_only: bool, with_plans: bool) -> tuple[Image.Image, ...]:
        image = None if layout_only else _open(self.image_file(name))
        if image is None:
            layout = read_layout_unchecked(self.layout_file(name))
            width, height = _open(self._overlay_file(name)).size
        else:
            # The layout inside the image: its file may have been edited since.
            layout = read_recipe(self.image_file(name)).layout
            width, height = image.size
        cells = [layout_image(layout, width, height)]
        if with_plans:
            plan = self._plan_file(name)
            cells.insert(0, _open(plan) if plan.is_file() else Image.new("RGB", (width, height), "white"))
        return (*cells, image) if image is not None else tuple(cells)

    def _tidy_index(self, names: Sequence[str]) -> None:
        """Leaves the newest line of every image that exists, and adds those of this call's images that have none."""
        index = self.path / "index.jsonl"
        entries: dict[str, str] = {}
        for line in split_lines(index.read_text(encoding="utf-8", errors="replace")):
            try:
                entry = parse_object(line)
                image = str(entry["image"] if "image" in entry else entry["picture"])  # version 0.1's name
            except (ValueError, KeyError):  # cut short by a kill
                continue
            if is_file(self.path / image):
                entries[image] = line
        for name in names:
            path = self.image_file(name)
            if path.name not in entries and path.is_file():
                entry = {"image": path.name, "layout_file": f"layouts/{name}.json"}
                entries[path.name] = json.dumps({**entry, **recipe_to_json(read_recipe(path))}, ensure_ascii=False)
        with replaced_file(index) as temporary:
            temporary.write_text("".join(f"{entries[name]}\n" for name in sorted(entries)), encoding="utf-8")


def _holds(path: Path, layout: Layout) -> bool:
    """Whether a layout file, which a person may have broken, holds this layout."""
    try:
        return read_object(path) == layout_to_json(layout)
    except ValueError:
        return False


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two recipes, with both values of settings."""
    settings = before.get("settings", {}), now.get("settings", {})
    found = [
        f"{name} was {settings[0].get(name)} and is now {value}"
        for name, value in settings[1].items()
        if settings[0].get(name) != value
    ]
    names = sorted((before.keys() | now.keys()) - {"settings"})
    return found + [f"another {name}" for name in names if before.get(name) != now.get(name)]


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
