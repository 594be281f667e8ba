"""Recipes: all that an image depends on, kept inside its PNG file.

The text field `vlad` of the PNG holds the recipe as JSON, layout included, with coordinates in full.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from vlad.inference.edit_requests import EditSource
from vlad.layout.layout_files import layout_from_json, layout_to_json
from vlad.pipeline.options import SampleSettings
from vlad.types import Layout
from vlad.utils.errors import UserError
from vlad.utils.paths import existing_file

FIELD = "vlad"


@dataclass(frozen=True)
class Recipe:
    """An image's own: prompt, seed, layout; and what it shares with its call."""

    prompt: str
    seed: int
    layout: Layout
    # Whether the layout was given; else the layout UNet planned it.
    layout_given: bool
    settings: SampleSettings
    # `loading.model_fingerprint`, and where the model came from: as the call named it.
    model: str
    run: str
    adapters: tuple[str, ...] = ()
    # The solver's class of each stage.
    solvers: tuple[str, ...] = ()
    dtype: str = "float32"
    device: str = "cpu"
    # Whether raw glyph maps that read as wanted were kept.
    keep_raw: bool = False
    # Of an edited image: the one it was made from.
    edit: EditSource | None = None

    def asks_for(self) -> dict[str, Any]:
        """What the image was asked to be: two recipes that agree in this are of the same image.

        Where the model lies is not in it, nor a layout that follows from the rest.
        """
        asked = recipe_to_json(self)
        for name in ("run", "adapters", "device", "software"):
            asked.pop(name)
        if not self.layout_given:
            asked.pop("layout")
        if self.edit is not None:  # what was edited counts, not where it lay
            asked["edit"] = {"image_pixels": self.edit.image_pixels, "mask_pixels": self.edit.mask_pixels}
        return asked


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON values, with the versions it was drawn by."""
    record = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    record["layout"] = layout_to_json(recipe.layout, exact=True)
    record["settings"] = dataclasses.asdict(recipe.settings)
    record["adapters"], record["solvers"] = list(recipe.adapters), list(recipe.solvers)
    record["edit"] = None if recipe.edit is None else dataclasses.asdict(recipe.edit)
    record["software"] = _software()
    return record


def recipe_from_json(record: Any) -> Recipe:
    """A recipe from plain JSON values. Raises ValueError, KeyError or TypeError for what is none."""
    edit = record.get("edit")  # older recipes know of none
    values = {field.name: record[field.name] for field in dataclasses.fields(Recipe) if field.name != "edit"}
    if edit is not None:
        edit = {name.replace("picture", "image"): value for name, value in edit.items()}  # version 0.1's names
        values["edit"] = EditSource(**{**edit, "masks": tuple(edit["masks"])})
    else:
        values["edit"] = None
    values["layout"] = layout_from_json(record["layout"])
    values["settings"] = SampleSettings(**record["settings"])
    values["adapters"], values["solvers"] = tuple(record["adapters"]), tuple(record["solvers"])
    return Recipe(**values)


def save_image(image: Image.Image, recipe: Recipe, path: Path) -> None:
    """Writes a PNG with its recipe, whole or not at all."""
    about = PngInfo()
    about.add_itxt(FIELD, json.dumps(recipe_to_json(recipe), ensure_ascii=False))
    temporary = path.with_suffix(".partial")
    image.save(temporary, "PNG", pnginfo=about)
    temporary.replace(path)


def read_recipe(path: Path | str) -> Recipe:
    """The recipe of an image that sample.py drew. Raises UserError when it has none."""
    path = existing_file(path, "image", "give one that sample.py has drawn")
    try:
        with Image.open(path) as image:
            stored = image.info[FIELD]  # stands before the pixels: those are not decoded
        return recipe_from_json(json.loads(stored))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no image that can be read; give a PNG that sample.py has drawn.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} holds no recipe that this version can read; give a PNG as sample.py has written it."
        ) from error


def _software() -> dict[str, str]:
    from importlib import metadata

    from vlad import __version__

    return {"vlad": __version__, **{name: metadata.version(name) for name in ("torch", "diffusers")}}
