"""How images are drawn: what a config says, what a call says, and what cannot be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vlad.layout.masks import Edit, common_size
from vlad.pipeline.options import check_scale
from vlad.utils.errors import UserError

MOST_PIXELS = 4096  # of a side
MOST_AT_ONCE = 4096  # images of a batch, which is filled up to its size
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class DrawSettings:
    """Everything but prompt, seed and layout that an image depends on: what a recipe has to keep."""

    steps: int
    text_scale: float
    layout_scale: float
    planning_scale: float
    refit: bool
    width: int
    height: int
    # Rows that run through the networks at once, filled up where there are fewer: kernels round by shape.
    batch_size: int
    # phi of `diffusion.samplers.guided`, both stages.
    guidance_rescale: float = 0.0
    negative_prompt: str = ""


def check_settings(settings: DrawSettings, unit: int, most_steps: int) -> DrawSettings:
    """The settings, of a model whose sides are multiples of `unit` and that was trained for `most_steps` noise levels.

    Raises UserError for what cannot be drawn: steps, scales, and sizes with the nearest that can.
    """
    if not 1 <= settings.steps <= most_steps:
        raise UserError(f"{settings.steps} steps cannot be taken: this model was trained for 1 to {most_steps}.")
    for name in ("text_scale", "layout_scale", "planning_scale"):
        check_scale(name, getattr(settings, name))
    if not 0 <= settings.guidance_rescale <= 1:
        raise UserError(f"guidance_rescale must be from 0 to 1, not {settings.guidance_rescale:g}.")
    if not 1 <= settings.batch_size <= MOST_AT_ONCE:
        raise UserError(f"batch_size must be from 1 to {MOST_AT_ONCE}, not {settings.batch_size}.")
    wrong = [side for side in (settings.width, settings.height) if side % unit or not 0 < side <= MOST_PIXELS]
    if wrong:
        width, height = (nearest_side(side, unit) for side in (settings.width, settings.height))
        raise UserError(
            f"This model cannot draw {settings.width} x {settings.height} pixels: both sides must be multiples of"
            f" {unit}, {MOST_PIXELS} at most; the nearest is {width} x {height}."
        )
    return settings


def check_call(count: int, output_type: str, tensors: Sequence[str]) -> None:
    """Raises UserError for arguments of diffusers' pipelines that have no meaning here."""
    if count < 1:
        raise UserError(f"num_images_per_prompt must be at least 1, not {count}.")
    if output_type not in OUTPUT_TYPES:
        raise UserError(f"There is no output_type {output_type!r}; known: {', '.join(OUTPUT_TYPES)}.")
    if set(tensors) - {"latents"}:
        raise UserError(f"callback_on_step_end_tensor_inputs: {list(tensors)} holds more than 'latents'.")


def check_can_edit(model_edits: bool) -> None:
    """Raises UserError for a model that does not edit."""
    if not model_edits:
        raise UserError(
            "This model was not trained to edit images; train one with refine.editing_share, such as"
            " configs/tiny_edit.yaml."
        )


def check_edits(
    edits: Sequence[Edit | None], model_edits: bool, width: int | None, height: int | None
) -> tuple[int, int]:
    """The height and width of the images that are edited. Raises UserError for a model that does not edit."""
    check_can_edit(model_edits)
    found = common_size(edits)
    if (height or found[0], width or found[1]) != found:
        raise UserError(
            f"The image to edit has {found[1]} x {found[0]} pixels and keeps them; leave width and height out."
        )
    return found


def nearest_side(pixels: float, unit: int) -> int:
    """The multiple of `unit` that is nearest to a side, within what can be drawn."""
    return min(max(1, math.floor(pixels / unit + 0.5)), MOST_PIXELS // unit) * unit
