"""Any diffusers text-to-image pipeline, called in one way."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from vlad.errors import UserError

PIXELS_A_CELL = 8  # of a latent; diffusers draws no other sizes than multiples of it
UNLOADABLE = (OSError, ValueError, AttributeError, TypeError, ImportError, KeyError)  # what diffusers raises


class TextToImage:
    """A pipeline of a local folder; each picture from its own seed, whatever else is drawn beside it.

    Raises UserError when the folder is no pipeline that takes prompts.
    """

    def __init__(
        self, folder: Path, steps: int | None, guidance: float | None, pixels: int | None, scheduler: str | None = None
    ) -> None:
        if pixels is not None and pixels % PIXELS_A_CELL:
            raise UserError(f"Pipelines of diffusers draw multiples of {PIXELS_A_CELL} pixels, not {pixels}.")
        pipeline = load_foreign(folder, scheduler=scheduler)
        taken = inspect.signature(pipeline.__call__).parameters
        wanted = {"num_inference_steps": steps, "guidance_scale": guidance, "height": pixels, "width": pixels}
        self.arguments = {name: value for name, value in wanted.items() if value is not None}
        unknown = [name for name in ("prompt", "generator", *self.arguments) if name not in taken]
        if unknown:
            raise UserError(
                f"{type(pipeline).__name__} in {folder} is called without {', '.join(unknown)}, so it cannot be sampled"
                " as asked; a text-to-image pipeline is needed."
            )
        self.name = type(pipeline).__name__
        self.pipeline = pipeline

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """A picture a prompt."""
        result = self.pipeline(
            prompt=list(prompts), generator=generators_of(seeds), output_type="pil", **self.arguments
        )
        return [image.convert("RGB") for image in result.images]


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """One a picture, on the CPU: the same noise on every machine."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def load_foreign(folder: Path, loader: Any = DiffusionPipeline, scheduler: str | None = None, **parts: Any) -> Any:
    """A pipeline of a local folder by a class of diffusers, on the GPU where there is one; `parts` replace its own.

    `scheduler` is a class of diffusers that takes the place of the pipeline's own, with the same options. Raises
    UserError for what cannot be loaded.
    """
    if not folder.is_dir():
        raise UserError(f"There is no model at {folder}; put its folder in diffusers' format there, or name its place.")
    try:
        pipeline = loader.from_pretrained(folder, local_files_only=True, **parts)
    except UNLOADABLE as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"The pipeline in {folder} cannot be loaded ({said}).") from error
    if scheduler is not None:
        kind: Any = getattr(diffusers, scheduler, None)
        if not hasattr(kind, "from_config"):
            raise UserError(f"diffusers has no scheduler {scheduler!r}; name one of its classes, like DDIMScheduler.")
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def pipeline_class(folder: Path) -> str | None:
    """The class that a pipeline folder names, None where there is no pipeline."""
    index = folder / "model_index.json"
    if not index.is_file():
        return None
    try:
        record = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{index} is damaged ({error}); save the pipeline anew.") from error
    name = record.get("_class_name") if isinstance(record, dict) else None
    if not name:
        raise UserError(f"{index} is damaged (it names no class of pipeline); save the pipeline anew.")
    return name if isinstance(name, str) else name[-1] if isinstance(name, list) and name else None
