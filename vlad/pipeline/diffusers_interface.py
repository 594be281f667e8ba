"""Diffusers' conventions for pipelines: output types, callbacks after each step, model offload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from torch import Tensor, nn

from vlad.diffusion.solvers import OnStep
from vlad.utils.errors import UserError

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# callback_on_step_end(pipeline, step, timestep, {"latents": x_t}); "latents" of what it returns replace x_t.
StepCallback = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]


def check_arguments(images_per_prompt: int, output_type: str, callback_tensors: Sequence[str]) -> None:
    """Raises UserError for values of diffusers' arguments that this pipeline does not take."""
    if images_per_prompt < 1:
        raise UserError(f"num_images_per_prompt must be at least 1, not {images_per_prompt}.")
    if output_type not in OUTPUT_TYPES:
        raise UserError(f"There is no output_type {output_type!r}; known: {', '.join(OUTPUT_TYPES)}.")
    if set(callback_tensors) - {"latents"}:
        raise UserError(f"callback_on_step_end_tensor_inputs takes 'latents' alone, not {', '.join(callback_tensors)}.")


def step_function(pipeline: Any, bar: Any, callback: StepCallback | None) -> OnStep:
    """What the solver calls after every step: moves the progress bar, then calls the caller's callback."""

    def on_step(number: int, timestep: Tensor, x_t: Tensor) -> Tensor:
        bar.update()
        if callback is None:
            return x_t
        return (callback(pipeline, number, timestep, {"latents": x_t}) or {}).get("latents", x_t)

    return on_step


def as_output_type(images: Tensor, output_type: str) -> Any:
    """Pixels (B 3 H W, 0..1), or latents where those were asked for, in the caller's format."""
    if output_type in ("pt", "latent"):
        return images
    rows = images.permute(0, 2, 3, 1)
    if output_type == "np":
        return rows.numpy()
    return [Image.fromarray(image) for image in (rows * 255).round().byte().numpy()]


def onload(module: nn.Module) -> None:
    """With model offload: moves a module to its device now. Its hook waits for `forward`, which not all calls are."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)
