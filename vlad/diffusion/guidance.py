"""Classifier-free guidance, hierarchical: one guidance scale for the text t, one for the layout z.

Any Denoiser (vlad/types.py) can be guided. Letters: B batch, C latent channels, h w cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from vlad.types import BaseTextStates, Conditioning, Denoiser

Predict = Callable[[Tensor, Tensor], Tensor]


def guided_prediction(
    denoise: Denoiser,
    dtype: torch.dtype,
    conditioning: Conditioning,
    z: Tensor | None,
    text_scale: float,
    layout_scale: float,
    rescale: float = 0.0,
    negative: Conditioning | None = None,
    edit: Tensor | None = None,
) -> Predict:
    """The guided prediction as a function of x_t and the timestep; computed in `dtype`, returned in x_t's.

        e = e(n, 0) + s_z (e(n, z) - e(n, 0)) + s_t (e(t, z) - e(n, z))

    s_t = text_scale, s_z = layout_scale; without z the terms in s_z vanish. n is the conditioning of the negative
    prompt, or of no prompt. A branch whose coefficient is zero is not computed, and the others run as one batch: scales
    of 1 cost one evaluation a step, equal scales two. `rescale` is phi of Lin et al. 2023 (arXiv 2305.08891, Eq. 15,
    16): how far e is brought back to the standard deviation of e(t, z), which large scales enlarge. Every branch gets
    the same inpainting channels `edit` (B 1+C h w).
    """
    branches: list[tuple[float, bool, bool]] = [(text_scale, True, True)]  # coefficient, with t, with z
    if z is None:
        branches.append((1 - text_scale, False, True))
    else:
        branches += [(layout_scale - text_scale, False, True), (1 - layout_scale, False, False)]
    branches = [branch for branch in branches if branch[0] != 0]

    batch, device = len(conditioning.tokens), conditioning.tokens.device
    if negative is None:
        negative = conditioning.unconditional_unless(torch.zeros(batch, dtype=torch.bool, device=device))
    all_conditioning = concat_conditioning(
        [conditioning if with_text else negative for _, with_text, _ in branches], dtype
    )
    all_z = None
    if z is not None:
        all_z = torch.cat([z if with_z else torch.zeros_like(z) for _, _, with_z in branches]).to(dtype)
    all_edit = None if edit is None else edit.repeat(len(branches), 1, 1, 1).to(dtype)

    def predict(x_t: Tensor, timestep: Tensor) -> Tensor:
        inputs = x_t.repeat(len(branches), 1, 1, 1).to(dtype)
        outputs = denoise(inputs, timestep.expand(len(inputs)), all_conditioning, all_z, all_edit).to(x_t.dtype)
        parts = outputs.chunk(len(branches))
        result = torch.stack([scale * part for (scale, _, _), part in zip(branches, parts, strict=True)]).sum(dim=0)
        if rescale and branches[0][1]:
            rescaled = result * parts[0].std(dim=(1, 2, 3), keepdim=True) / result.std(dim=(1, 2, 3), keepdim=True)
            result = rescale * rescaled + (1 - rescale) * result
        return result

    return predict


def concat_conditioning(parts: Sequence[Conditioning], dtype: torch.dtype | None = None) -> Conditioning:
    """Concatenates the rows of all parts, which have the same K; dtype None: no cast."""

    def cat(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat(list(tensors)).to(dtype=dtype)

    base_text = None
    if all(part.base_text is not None for part in parts):
        states = [part.base_text for part in parts if part.base_text is not None]
        pooled = [(state.pooled, state.empty_pooled) for state in states]
        base_text = BaseTextStates(
            cat(state.tokens for state in states),
            cat(x for x, _ in pooled if x is not None) if pooled[0][0] is not None else None,
            cat(state.empty_tokens for state in states),
            cat(x for _, x in pooled if x is not None) if pooled[0][1] is not None else None,
        )
    return Conditioning(
        cat(part.tokens for part in parts),
        torch.cat([part.mask for part in parts]),
        cat(part.pooled for part in parts),
        base_text,
        parts[0].size,
    )
