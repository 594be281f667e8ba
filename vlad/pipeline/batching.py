"""Batches in which an image does not depend on its neighbours: of one size, with noise and padding of its own.

Letters: B images, C latent channels, h w cells, K tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vlad.diffusion.guidance import concat_conditioning
from vlad.pipeline.image_request import ImageRequest
from vlad.types import Conditioning
from vlad.utils.distributed import derived_seed
from vlad.utils.errors import UserError

TOKEN_MULTIPLE = 32  # conditioning tokens are padded to a multiple of this


@dataclass(frozen=True)
class InitialNoise:
    """What one image starts from in either stage, C h w each."""

    layout: Tensor
    refine: Tensor


@dataclass(frozen=True)
class PromptConditioning:
    """What guidance steers between: t of the prompts, and of the negative prompt (None: of no prompt)."""

    positive: Conditioning
    negative: Conditioning | None


@dataclass(frozen=True)
class SampleBatch:
    """Images that run through the networks together; only the first `count` rows are wanted."""

    requests: list[ImageRequest]
    noise: list[InitialNoise]
    t: PromptConditioning
    count: int


def initial_noise(
    seeds: Sequence[int], generator: torch.Generator | Sequence[torch.Generator] | None, shape: tuple[int, int, int]
) -> list[InitialNoise]:
    """Noise of both stages for each image (C h w), from its seed or generator; on the CPU, so that devices agree."""
    if generator is None:
        return [InitialNoise(*(_noise_of(2 * seed + stage, shape) for stage in (0, 1))) for seed in seeds]
    one_each = [generator] * len(seeds) if isinstance(generator, torch.Generator) else list(generator)
    if len(one_each) != len(seeds):
        raise UserError(f"There are {len(one_each)} generators for {len(seeds)} images; give one each, or one.")
    return [
        InitialNoise(*(torch.randn(shape, generator=own, device=own.device).cpu() for _ in range(2)))
        for own in one_each
    ]


def _noise_of(number: int, shape: tuple[int, int, int]) -> Tensor:
    """Normal noise of a number of any size. torch's CPU generator takes 32 bits and drops the rest: larger numbers add
    the noise of their upper bits, and the sum of the two has the variance of one."""
    upper, lower = divmod(number, 2**32)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(lower))
    if not upper:
        return noise
    other = torch.randn(shape, generator=torch.Generator().manual_seed(derived_seed("upper bits", upper) % 2**32))
    return (noise + other) / 2**0.5


def full_batches(count: int, size: int) -> Iterator[tuple[list[int], int]]:
    """Indices in batches of exactly `size`, and how many of them count.

    The last batch repeats its last image: kernels are chosen by shape, and an image has to come out bit for bit the
    same alone and in company.
    """
    for start in range(0, count, size):
        indices = list(range(start, min(start + size, count)))
        yield indices + indices[-1:] * (size - len(indices)), len(indices)


def padded_conditioning(
    by_text: Mapping[str, Conditioning], texts: Sequence[str], negative: str | None, size: tuple[int, int]
) -> PromptConditioning:
    """t of each text and of the negative one (B K D), all padded to one width; `size` is H W in pixels."""
    different = {*texts, *([] if negative is None else [negative])}
    width = max(by_text[text].tokens.shape[1] for text in different)
    width = -(-width // TOKEN_MULTIPLE) * TOKEN_MULTIPLE
    padded = {text: replace(_padded(by_text[text], width), size=size) for text in different}
    return PromptConditioning(
        concat_conditioning([padded[text] for text in texts]),
        None if negative is None else concat_conditioning([padded[negative]] * len(texts)),
    )


def _padded(t: Conditioning, width: int) -> Conditioning:
    missing = width - t.tokens.shape[1]
    return replace(t, tokens=F.pad(t.tokens, (0, 0, 0, missing)), mask=F.pad(t.mask, (0, missing)))
