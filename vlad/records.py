"""What the rooms hand each other: small frozen records, no behaviour beyond checks of themselves.

Shapes use the letters: B batch, L tokens of the LVLM, N local phrases, K tokens of the conditioning, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

Point = tuple[float, float]
Polygon = tuple[Point, ...]


@dataclass(frozen=True)
class TextLine:
    """One line of text in a picture.

    `polygon` holds at least four points in picture coordinates (x right, y down, 0..1), clockwise from the
    top left corner of the first letter. `colour` is a name or `#rrggbb`; `font` and `language` may be None
    (not known). `valid=False` marks a region whose text is not legible: training ignores it.
    """

    text: str
    polygon: Polygon
    language: str | None = None
    font: str | None = None
    colour: str | None = None
    valid: bool = True
    confidence: float | None = None


@dataclass(frozen=True)
class Layout:
    """Where the text of a picture stands, in reading order."""

    lines: tuple[TextLine, ...]


@dataclass(frozen=True)
class ObjectBox:
    """A phrase of the caption and the box (left, top, right, bottom; 0..1) of what it names."""

    phrase: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Sample:
    """A picture (H W 3, uint8) with its caption and its text, as a shard holds it."""

    key: str
    picture: np.ndarray
    caption: str
    layout: Layout
    objects: tuple[ObjectBox, ...] = ()
    source: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Batch:
    """What the data room hands to training.

    pictures and glyph_maps: B 3 H W, pixels in [-1, 1]. loss_weights: B 1 H W, 0 where the text is marked
    invalid and must not be learned, else 1.
    """

    keys: tuple[str, ...]
    captions: tuple[str, ...]
    layouts: tuple[Layout, ...]
    pictures: Tensor
    glyph_maps: Tensor
    loss_weights: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        return Batch(
            self.keys,
            self.captions,
            self.layouts,
            self.pictures.to(device, non_blocking=True),
            self.glyph_maps.to(device, non_blocking=True),
            self.loss_weights.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Span:
    """A stretch of a prompt: `prompt[start:end] == text`, in characters."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Prompt:
    """A prompt taken apart: the sentence, its object phrases, its quoted strings (without their marks)."""

    text: str
    phrases: tuple[Span, ...]
    quotes: tuple[Span, ...]

    @property
    def strings(self) -> tuple[str, ...]:
        """The quoted strings alone, in the order of the prompt."""
        return tuple(quote.text for quote in self.quotes)


@dataclass(frozen=True)
class TextStates:
    """The LVLM's reading of prompts, P(Z_T | T): tokens B L D with mask B L, t_g B D, {t_i} B N D with mask B N."""

    tokens: Tensor
    mask: Tensor
    global_state: Tensor
    local_states: Tensor
    local_mask: Tensor

    def to(self, dtype: torch.dtype) -> TextStates:
        """The same states in another precision: a frozen LVLM may run in half of what the CCM trains in."""
        return TextStates(
            self.tokens.to(dtype),
            self.mask,
            self.global_state.to(dtype),
            self.local_states.to(dtype),
            self.local_mask,
        )


@dataclass(frozen=True)
class Conditioning:
    """t of Eq. 2 as the UNets take it: tokens B K D with mask B K (True = attend) and pooled B D."""

    tokens: Tensor
    mask: Tensor
    pooled: Tensor

    def select(self, index: Tensor) -> Conditioning:
        """The rows of `index` (B', integer or boolean)."""
        return Conditioning(self.tokens[index], self.mask[index], self.pooled[index])

    def dropped(self, keep: Tensor) -> Conditioning:
        """The rows where `keep` (B, bool) is False replaced by the unconditional one.

        That is all zeros, attended to everywhere; no prompt gives it, as every prompt's tokens leave a layer norm.
        """
        weights = keep.to(self.tokens.dtype)
        return Conditioning(
            self.tokens * weights[:, None, None], self.mask | ~keep[:, None], self.pooled * weights[:, None]
        )
