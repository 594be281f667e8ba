"""Any diffusers text-to-image pipeline, called in one way."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from vlad.errors import UserError


class TextToImage:
    """A pipeline of a local folder; each picture from its own seed, whatever else is drawn beside it.

    Raises UserError when the folder is no pipeline that takes prompts.
    """

    def __init__(self, folder: Path, steps: int | None, guidance: float | None, pixels: int | None) -> None:
        try:
            pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, AttributeError, TypeError, ImportError, KeyError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"The pipeline in {folder} cannot be loaded ({said}).") from error
        taken = inspect.signature(pipeline.__call__).parameters
        wanted = {"num_inference_steps": steps, "guidance_scale": guidance, "height": pixels, "width": pixels}
        self.arguments = {name: value for name, value in wanted.items() if value is not None}
        unknown = [name for name in ("prompt", "generator", *self.arguments) if name not in taken]
        if unknown:
            raise UserError(
                f"{type(pipeline).__name__} in {folder} is called without {', '.join(unknown)}, so it cannot be sampled"
                " as asked; a text-to-image pipeline is needed."
            )
        pipeline.set_progress_bar_config(disable=True)
        self.name = type(pipeline).__name__
        self.pipeline = pipeline.to("cuda" if torch.cuda.is_available() else "cpu")

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """A picture a prompt."""
        # On the CPU: the same noise on every machine.
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        result = self.pipeline(prompt=list(prompts), generator=generators, output_type="pil", **self.arguments)
        return [image.convert("RGB") for image in result.images]


def pipeline_class(folder: Path) -> str | None:
    """The class that a pipeline folder names, None where there is no pipeline."""
    index = folder / "model_index.json"
    if not index.is_file():
        return None
    try:
        name = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{index} is damaged ({error}); save the pipeline anew.") from error
    return name if isinstance(name, str) else name[-1] if isinstance(name, list) and name else None
