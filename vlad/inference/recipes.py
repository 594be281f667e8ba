"""Recipes: everything that an image depends on, stored inside its PNG file.

The PNG's text field `vlad` holds the recipe as JSON, layout included, with coordinates in full.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vlad.inference.edit_requests import EditSource
from vlad.inference.load_pipeline import model_fingerprint
from vlad.layout.layout_files import layout_from_json, layout_to_json
from vlad.pipeline.options import SampleSettings
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.types import Layout
from vlad.utils.atomic_files import replaced_file
from vlad.utils.errors import UserError
from vlad.utils.json_objects import parse_object
from vlad.utils.paths import existing_file

FIELD = "vlad"


@dataclass(frozen=True)
class Recipe:
    """What one image depends on: prompt, seed and layout of its own, and the settings and the model of its call."""

    prompt: str
    seed: int
    layout: Layout
    # Whether the layout was given; else the layout UNet planned it.
    layout_given: bool
    settings: SampleSettings
    # `load_pipeline.model_fingerprint`, and where the model came from: as the call named it.
    model: str
    run: str
    adapters: tuple[str, ...] = ()
    # The solver's class of each stage.
    solvers: tuple[str, ...] = ()
    dtype: str = "float32"
    device: str = "cpu"
    # Whether raw glyph maps that the OCR engine read as wanted were kept.
    keep_raw: bool = False
    # Of an edited image: the one it was made from.
    edit: EditSource | None = None

    def identity(self) -> dict[str, Any]:
        """The part that decides the image: two recipes that agree in it are of the same image.

        The places of files are not in it, nor a layout that follows from the rest.
        """
        record = recipe_to_json(self)
        for name in ("run", "adapters", "device", "software"):
            record.pop(name)
        if not self.layout_given:
            record.pop("layout")
        if self.edit is not None:
            record["edit"] = {"image_pixels": self.edit.image_pixels, "mask_pixels": self.edit.mask_pixels}
        return record


def origin_of(
    pipeline: VLADPipeline, run: str, adapters: Sequence[str] = (), edit: EditSource | None = None
) -> dict[str, Any]:
    """The fields of a recipe that all images of a call share: the model, and where it runs."""
    schedulers = (pipeline.layout_scheduler, pipeline.refine_scheduler)
    return {
        "model": model_fingerprint(pipeline),
        "run": str(run),
        "adapters": tuple(adapters),
        "solvers": tuple(type(scheduler).__name__ for scheduler in schedulers if scheduler is not None),
        "dtype": str(pipeline.refine_unet.dtype).removeprefix("torch."),
        "device": str(pipeline._execution_device),
        "edit": edit,
    }


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON values, with the versions of the software."""
    record = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    record["layout"] = layout_to_json(recipe.layout, exact=True)
    record["settings"] = dataclasses.asdict(recipe.settings)
    record["adapters"], record["solvers"] = list(recipe.adapters), list(recipe.solvers)
    record["edit"] = None if recipe.edit is None else dataclasses.asdict(recipe.edit)
    record["software"] = _software()
    return record


def recipe_from_json(record: dict[str, Any]) -> Recipe:
    """A recipe from plain JSON values. Raises AttributeError, KeyError, TypeError or ValueError where they are none."""
    edit = record.get("edit")  # the first recipes have no such field
    if edit is not None:
        edit = {name.replace("picture", "image"): value for name, value in edit.items()}  # version 0.1's names
        edit = EditSource(**{**edit, "masks": tuple(edit["masks"])})
    values = {field.name: record[field.name] for field in dataclasses.fields(Recipe) if field.name != "edit"}
    values["layout"] = layout_from_json(record["layout"])
    values["settings"] = SampleSettings(**record["settings"])
    values["adapters"], values["solvers"] = tuple(record["adapters"]), tuple(record["solvers"])
    return Recipe(**values, edit=edit)


def save_image(image: Image.Image, recipe: Recipe, path: Path) -> None:
    """Writes a PNG with its recipe inside, atomically."""
    text = PngInfo()
    text.add_itxt(FIELD, json.dumps(recipe_to_json(recipe), ensure_ascii=False))
    with replaced_file(path) as temporary:
        image.save(temporary, "PNG", pnginfo=text)


def read_recipe(path: Path | str) -> Recipe:
    """The recipe inside an image that sample.py generated. Raises UserError when it has none."""
    path = existing_file(path, "image", "give one that sample.py has generated")
    try:
        with Image.open(path) as image:
            stored = image.info.get(FIELD, "")  # before the pixels, which are not decoded
    except Exception as error:  # Pillow's plugins share no class for what they meet in damaged files
        raise UserError(f"{path} is no image that can be read; give a PNG that sample.py has generated.") from error
    try:
        return recipe_from_json(parse_object(stored))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} holds no recipe that this version can read; give a PNG as sample.py has written it."
        ) from error


def _software() -> dict[str, str]:
    from importlib import metadata

    from vlad import __version__

    return {"vlad": __version__, **{name: metadata.version(name) for name in ("torch", "diffusers")}}
