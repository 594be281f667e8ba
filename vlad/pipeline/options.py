"""Sampling options: a model's defaults, the settings of one call, and the ranges of both."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlad.utils.errors import UserError

MOST_SCALE = 100.0  # of guidance: images are overexposed long before
MOST_PIXELS = 4096  # of a side
MOST_BATCH_SIZE = 4096  # every batch is filled up to its size
SCALES = ("text_scale", "layout_scale", "planning_scale")


def check_scale(name: str, value: float) -> None:
    """Raises UserError for a guidance scale out of range; `name` is the option."""
    if not 0 <= value <= MOST_SCALE:
        raise UserError(
            f"{name} must be from 0 to {MOST_SCALE:g}, not {value:g}; 1 turns guidance off, and 2 to 10 are usual."
        )


@dataclass(frozen=True)
class SampleOptions:
    """A model's sampling defaults."""

    # Solver steps of each stage.
    steps: int = 20
    # Guidance scale s_t of the refine stage: how far the prompt moves a prediction.
    text_scale: float = 2.0
    # Guidance scale s_z of the refine stage: how far the layout does.
    layout_scale: float = 2.0
    # Guidance scale of the layout stage, by the prompt.
    planning_scale: float = 1.0
    # Read the layout off the generated glyph map and render it again before stage two.
    refit: bool = True
    # Images generated at once. Batches are always filled up: an image must not depend on how many others there are.
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise UserError("sample: steps and batch_size must be at least 1.")
        for name in SCALES:
            check_scale(f"sample.{name}", getattr(self, name))


@dataclass(frozen=True)
class SampleSettings:
    """Everything but prompt, seed and layout that an image depends on: what a recipe has to keep.

    Raises UserError for values that no model takes.
    """

    steps: int
    text_scale: float
    layout_scale: float
    planning_scale: float
    refit: bool
    width: int
    height: int
    # Images that run through the networks at once, filled up where there are fewer: kernels round by shape.
    batch_size: int
    # phi of `vlad.diffusion.guidance.guided_prediction`, both stages.
    guidance_rescale: float = 0.0
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        for name in SCALES:
            check_scale(name, getattr(self, name))
        if not 0 <= self.guidance_rescale <= 1:
            raise UserError(f"guidance_rescale must be from 0 to 1, not {self.guidance_rescale:g}.")
        if not 1 <= self.batch_size <= MOST_BATCH_SIZE:
            raise UserError(f"batch_size must be from 1 to {MOST_BATCH_SIZE}, not {self.batch_size}.")


def check_model_limits(settings: SampleSettings, side_unit: int, train_timesteps: int) -> None:
    """Raises UserError for more steps than noise levels, and for sides that are no multiples of `side_unit`."""
    if not 1 <= settings.steps <= train_timesteps:
        raise UserError(f"{settings.steps} steps cannot be taken: this model was trained for 1 to {train_timesteps}.")
    sides = settings.width, settings.height
    if any(side % side_unit or not 0 < side <= MOST_PIXELS for side in sides):
        width, height = (nearest_side(side, side_unit) for side in sides)
        raise UserError(
            f"This model cannot generate {settings.width} x {settings.height} pixels: both sides must be multiples of"
            f" {side_unit}, {MOST_PIXELS} at most; the nearest size is {width} x {height}."
        )


def nearest_side(pixels: float, side_unit: int) -> int:
    """The multiple of `side_unit` that is nearest to a side, within MOST_PIXELS."""
    return min(max(1, math.floor(pixels / side_unit + 0.5)), MOST_PIXELS // side_unit) * side_unit
