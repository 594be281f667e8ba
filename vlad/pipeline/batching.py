"""What the pipeline hands from step to step, and images in batches of one size.

Letters: B images, C latent channels, h w cells, K tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vlad.diffusion.guidance import concat_conditioning
from vlad.diffusion.solvers import OnStep
from vlad.types import Conditioning, Layout
from vlad.utils.errors import UserError

TOKEN_ROUNDING = 32  # conditioning tokens are filled up to a multiple of this
# What callback_on_step_end gets and gives back (diffusers' contract).
StepCallback = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]


@dataclass(frozen=True)
class Plan:
    """What stands between the stages: the layout; with stage one its raw glyph map (H W, 0..1) and latents (C h w).

    `keep_raw`: stage two takes the raw latents rather than the layout drawn again.
    """

    layout: Layout
    glyph_map: np.ndarray | None
    z: Tensor | None
    keep_raw: bool = False


@dataclass(frozen=True)
class Noise:
    """What one image starts from in either stage, C h w each."""

    layout: Tensor
    refine: Tensor


@dataclass(frozen=True)
class Guidance:
    """What guidance steers between: t of the prompts, and of the negative one (None: of no prompt)."""

    wanted: Conditioning
    negative: Conditioning | None


def draw_noise(
    seeds: Sequence[int], generator: torch.Generator | Sequence[torch.Generator] | None, shape: tuple[int, int, int]
) -> list[Noise]:
    """Noise of both stages for each image, C h w; drawn on the CPU, so that devices agree."""
    if generator is None:
        generators = [[torch.Generator().manual_seed(2 * seed + stage) for stage in (0, 1)] for seed in seeds]
    else:
        one_each = [generator] * len(seeds) if isinstance(generator, torch.Generator) else list(generator)
        if len(one_each) != len(seeds):
            raise UserError(f"There are {len(one_each)} generators for {len(seeds)} images; give one each, or one.")
        generators = [[own, own] for own in one_each]
    return [Noise(*(torch.randn(shape, generator=own, device=own.device).cpu() for own in pair)) for pair in generators]


def stepping(pipeline: Any, bar: Any, callback: StepCallback | None) -> OnStep:
    """What runs after every step: the progress bar, and the caller's own."""

    def on_step(number: int, timestep: Tensor, x_t: Tensor) -> Tensor:
        bar.update()
        if callback is None:
            return x_t
        return (callback(pipeline, number, timestep, {"latents": x_t}) or {}).get("latents", x_t)

    return on_step


def agrees(read: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether a reading holds exactly the wanted strings, case, spaces and order aside."""

    def said(strings: Sequence[str]) -> list[str]:
        return sorted("".join(text.split()).casefold() for text in strings)

    return said(read) == said(wanted) or said(["".join(read)]) == said(["".join(wanted)])


def guidance_of(
    readings: Mapping[str, Conditioning], texts: Sequence[str], against: str | None, size: tuple[int, int]
) -> Guidance:
    """t of each text, and of the one that guidance leads away from; all filled up to one width; `size` is H W."""
    different = {*texts, *([] if against is None else [against])}
    width = max(readings[text].tokens.shape[1] for text in different)
    width = -(-width // TOKEN_ROUNDING) * TOKEN_ROUNDING
    filled = {text: replace(_filled_up(readings[text], width), size=size) for text in different}
    return Guidance(
        concat_conditioning([filled[text] for text in texts]),
        None if against is None else concat_conditioning([filled[against]] * len(texts)),
    )


def _filled_up(part: Conditioning, width: int) -> Conditioning:
    missing = width - part.tokens.shape[1]
    return replace(part, tokens=F.pad(part.tokens, (0, 0, 0, missing)), mask=F.pad(part.mask, (0, missing)))


def as_output(images: Tensor, output_type: str) -> Any:
    """Pixels (B 3 H W, 0..1) or latents as the caller wants them."""
    if output_type in ("pt", "latent"):
        return images
    rows = images.permute(0, 2, 3, 1)
    if output_type == "np":
        return rows.numpy()
    return [Image.fromarray(image) for image in (rows * 255).round().byte().numpy()]


def full_batches(count: int, size: int) -> Iterator[tuple[list[int], int]]:
    """Indices in batches of exactly `size`, and how many of them count.

    The last batch repeats its last image: with the same shapes the same kernels run, so that an image comes
    out bit for bit the same alone and in company.
    """
    for start in range(0, count, size):
        indices = list(range(start, min(start + size, count)))
        yield indices + indices[-1:] * (size - len(indices)), len(indices)


def onload(module: nn.Module) -> None:
    """With model offload: moves a module to its device now. Its hook waits for `forward`, which not all calls are."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)
