"""Any text-to-image pipeline of diffusers, loaded from a local folder and called in one way."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from PIL import Image

from vlad.models.weight_files import load_parts
from vlad.utils.errors import UserError
from vlad.utils.failures import user_errors
from vlad.utils.hardware import best_device
from vlad.utils.paths import checked_path

PIXELS_PER_LATENT = 8  # sizes of diffusers' images are multiples of it
REMEDY = "copy it again from where it was made, or name the right one"


class TextToImage:
    """A pipeline of a local folder; each image from its own seed, whatever the batch.

    Raises UserError where the folder's pipeline needs more than prompts.
    """

    def __init__(
        self, folder: Path, steps: int | None, guidance: float | None, pixels: int | None, scheduler: str | None = None
    ) -> None:
        if pixels is not None and pixels % PIXELS_PER_LATENT:
            raise UserError(f"Pipelines of diffusers generate multiples of {PIXELS_PER_LATENT} pixels, not {pixels}.")
        pipeline = load_diffusers_pipeline(folder, scheduler=scheduler, steps=steps)
        needed = _needed_beside_prompts(pipeline)
        if needed:
            raise UserError(
                f"{type(pipeline).__name__} in {folder} needs more than a prompt ({', '.join(needed)}), so it cannot be"
                " sampled; a text-to-image pipeline is needed."
            )
        taken = inspect.signature(pipeline.__call__).parameters
        given = {"num_inference_steps": steps, "guidance_scale": guidance, "height": pixels, "width": pixels}
        self.arguments = {name: value for name, value in given.items() if value is not None}
        unknown = [name for name in ("prompt", "generator", *self.arguments) if name not in taken]
        if unknown:
            raise UserError(
                f"{type(pipeline).__name__} in {folder} takes no {', '.join(unknown)}, so it cannot be sampled with"
                " these settings; a text-to-image pipeline is needed."
            )
        self.name = type(pipeline).__name__
        self.pipeline = pipeline

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """An image a prompt."""
        result = self.pipeline(
            prompt=list(prompts), generator=generators_of(seeds), output_type="pil", **self.arguments
        )
        return [image.convert("RGB") for image in result.images]


def _needed_beside_prompts(pipeline: Any) -> list[str]:
    """The arguments, beside prompts, that the pipeline cannot do without."""
    taken = inspect.signature(pipeline.__call__).parameters.values()
    named = [one for one in taken if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD) and one.name != "prompt"]
    needed = [one.name for one in named if one.default is one.empty]
    images = [one.name for one in named if one.name in ("image", "control_image") and one.name not in needed]
    if not images:
        return needed
    # Pipelines that take an image may give it a default and fail later; some text-to-image pipelines take one as well.
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING  # late: it imports every pipeline

    kind = type(pipeline)
    is_text_to_image = kind in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values() and "Control" not in kind.__name__
    return needed if is_text_to_image else [*needed, *images]


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """A generator an image, on the CPU: the same noise on every machine."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def load_diffusers_pipeline(
    folder: Path,
    loader: Any = DiffusionPipeline,
    scheduler: str | None = None,
    steps: int | None = None,
    **parts: Any,
) -> Any:
    """The pipeline of a local folder, on the best device; `parts` replace its own.

    `loader` is the class of diffusers to load by. `scheduler` names a class that replaces the pipeline's own, with the
    same options. Raises UserError for folders that cannot be read, for weights that do not fit their configs, and for a
    scheduler or `steps` that do not fit.
    """
    if not checked_path(folder, "model").is_dir():
        raise UserError(f"There is no model at {folder}; put its folder in diffusers' format there, or name its place.")
    label = f"The pipeline in {folder}"
    with user_errors(label, unreadable=REMEDY):
        index = DiffusionPipeline.load_config(folder, local_files_only=True)
        others = {name: entry for name, entry in index.items() if name not in parts}
        parts |= load_parts(folder, others, {}, label, REMEDY, torch.float32)
        pipeline = loader.from_pretrained(folder, local_files_only=True, **parts)
    if scheduler is not None:
        pipeline.scheduler = _replacement_scheduler(pipeline, scheduler, folder)
    _check_steps(pipeline, steps, folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(best_device())


def _replacement_scheduler(pipeline: Any, name: str, folder: Path) -> Any:
    kind: Any = getattr(diffusers, name, None)
    is_scheduler = isinstance(kind, type) and issubclass(kind, SchedulerMixin) and kind is not SchedulerMixin
    if not is_scheduler:
        raise UserError(f"diffusers has no scheduler {name!r}; name one of its classes, like DDIMScheduler.")
    own = getattr(pipeline, "scheduler", None)
    if not isinstance(own, SchedulerMixin):
        raise UserError(f"The pipeline in {folder} has no scheduler that {name} could replace; leave it out.")
    # Others would take the options that they know by name, and generate nonsense.
    fitting = {one.__name__ for one in (type(own), *own.compatibles)}
    if name not in fitting:
        raise UserError(
            f"{name} cannot replace {type(own).__name__} in {folder}; schedulers that can:"
            f" {', '.join(sorted(fitting))}."
        )
    with user_errors(f"{name}: the scheduler's options in {folder}", unreadable="name another scheduler"):
        return kind.from_config(own.config)


def _check_steps(pipeline: Any, steps: int | None, folder: Path) -> None:
    scheduler = getattr(pipeline, "scheduler", None)
    most = None if scheduler is None else scheduler.config.get("num_train_timesteps")
    if steps is not None and most is not None and not 1 <= steps <= most:
        raise UserError(f"{steps} steps cannot be taken: the pipeline in {folder} was trained for 1 to {most}.")
