"""Sampling defaults of a model: steps, guidance scales, refit."""

from __future__ import annotations

from dataclasses import dataclass

from vlad.utils.errors import UserError

MOST_SCALE = 100.0  # of guidance: images glare long before


def check_scale(name: str, value: float) -> None:
    """Raises UserError for a scale of guidance that draws nothing: `name` says whose it is."""
    if not 0 <= value <= MOST_SCALE:
        raise UserError(
            f"{name} must be from 0 to {MOST_SCALE:g}, not {value:g}; 1 leaves guidance out, and 2 to 10 are usual."
        )


@dataclass(frozen=True)
class SampleOptions:
    """How images are drawn unless the call says otherwise."""

    steps: int = 20
    # Guidance: s_t and s_z of `diffusion.samplers.guided`; the layout stage has a text scale of its own.
    text_scale: float = 2.0
    layout_scale: float = 2.0
    planning_scale: float = 1.0
    # Read the layout off the generated glyph map and draw it again before stage two.
    refit: bool = True
    # Images drawn at once. Always filled up: an image must not depend on how many others are drawn.
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise UserError("sample: steps and batch_size must be at least 1.")
        for name in ("text_scale", "layout_scale", "planning_scale"):
            check_scale(f"sample.{name}", getattr(self, name))
