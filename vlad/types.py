"""Data types that rooms exchange: layouts, samples, batches, prompts, text states, conditioning. Frozen dataclasses.

Shapes use the letters: B batch, L tokens of the LVLM, N local phrases, K tokens of the conditioning, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

Point = tuple[float, float]
Polygon = tuple[Point, ...]


@dataclass(frozen=True)
class TextLine:
    """One line of text in an image.

    `polygon` has at least four points in image coordinates (x right, y down, 0..1), clockwise from the top left corner
    of the first letter. `colour` is a name or `#rrggbb`; None for `language`, `font`, `colour` and `confidence` means
    not known. `valid=False` marks a region whose text is not legible: training ignores it.
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
    """The lines of text of an image, in reading order."""

    lines: tuple[TextLine, ...]
    # The font of its glyph map (`layout/fonts.py`): the UNets' property, so data and pipelines set it and files don't.
    glyph_font: str = "mono-bold"


@dataclass(frozen=True)
class ObjectBox:
    """A phrase of the caption and the box (left, top, right, bottom; 0..1) of the object that it names."""

    phrase: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Sample:
    """A training sample as a shard holds it: an image (H W 3, uint8) with its caption and its text."""

    key: str
    image: np.ndarray
    caption: str
    layout: Layout
    objects: tuple[ObjectBox, ...] = ()
    source: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class CachedStates:
    """Precomputed outputs of frozen models for a batch: mean and deviation of the scaled latents, B C h w each.

    Latents from a cache are float16, as stored; `image_moments` and `glyph_moments` convert them. A deviation is None
    where the autoencoder is deterministic. `text` are the LVLM's states of the captions and `v` the image embeddings
    (B D), each None where it was not cached.
    """

    image_mean: Tensor
    image_deviation: Tensor | None
    glyph_mean: Tensor
    glyph_deviation: Tensor | None
    text: TextStates | None = None
    v: Tensor | None = None

    @property
    def image_moments(self) -> tuple[Tensor, Tensor | None]:
        """Mean and deviation of the images' scaled latents, float32."""
        return self.image_mean.float(), None if self.image_deviation is None else self.image_deviation.float()

    @property
    def glyph_moments(self) -> tuple[Tensor, Tensor | None]:
        """Mean and deviation of the glyph maps' scaled latents, float32."""
        return self.glyph_mean.float(), None if self.glyph_deviation is None else self.glyph_deviation.float()

    def to(self, device: torch.device) -> CachedStates:
        """The same states on `device`."""

        def moved(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device)

        return CachedStates(
            self.image_mean.to(device),
            moved(self.image_deviation),
            self.glyph_mean.to(device),
            moved(self.glyph_deviation),
            None if self.text is None else self.text.to(device),
            moved(self.v),
        )


@dataclass(frozen=True)
class Batch:
    """A training batch: samples of one image size.

    Pixels stay bytes until they are on the device that needs them. image_bytes: B 3 H W (uint8); ink_bytes: B 1 H W
    (uint8), the glyph maps; both None where `cached` replaces them. ignored: B 1 H W or, with `cached`, B 1 h w (bool),
    True where text is illegible and excluded from the loss; None where nothing is.
    """

    keys: tuple[str, ...]
    captions: tuple[str, ...]
    layouts: tuple[Layout, ...]
    objects: tuple[tuple[ObjectBox, ...], ...]
    image_bytes: Tensor | None
    ink_bytes: Tensor | None
    ignored: Tensor | None
    cached: CachedStates | None = None

    @property
    def images(self) -> Tensor:
        """B 3 H W, pixels in [-1, 1]."""
        assert self.image_bytes is not None, "the batch holds cached states"
        return self.image_bytes.float() / 127.5 - 1

    @property
    def glyph_maps(self) -> Tensor:
        """B 3 H W, white strokes on black, pixels in [-1, 1]."""
        assert self.ink_bytes is not None, "the batch holds cached states"
        return (self.ink_bytes.float() / 127.5 - 1).expand(-1, 3, -1, -1)

    @property
    def pixel_weights(self) -> Tensor | None:
        """Loss weights, B 1 H W: 0 where `ignored`, else 1; None for 1 everywhere."""
        return None if self.ignored is None else (~self.ignored).float()

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""

        def moved(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device, non_blocking=True)

        return replace(
            self,
            image_bytes=moved(self.image_bytes),
            ink_bytes=moved(self.ink_bytes),
            ignored=moved(self.ignored),
            cached=None if self.cached is None else self.cached.to(device),
        )


@dataclass(frozen=True)
class Span:
    """A substring of a prompt: `prompt[start:end] == text`, in characters."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Prompt:
    """A parsed prompt: its text, object phrases and quoted strings (without quotation marks)."""

    text: str
    phrases: tuple[Span, ...]
    quotes: tuple[Span, ...]

    @property
    def strings(self) -> tuple[str, ...]:
        """The texts of the quoted strings, in the order of the prompt."""
        return tuple(quote.text for quote in self.quotes)


@dataclass(frozen=True)
class TextStates:
    """The LVLM's output for prompts, P(Z_T | T): tokens B L D with mask B L, t_g B D, {t_i} B N D with mask B N.

    `ids` (B L) are the token ids; None for cached states, which do not store them.
    """

    tokens: Tensor
    mask: Tensor
    global_state: Tensor
    local_states: Tensor
    local_mask: Tensor
    ids: Tensor | None = None

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> TextStates:
        """The same states on another device or in another precision (a frozen LVLM may run in half precision)."""
        return TextStates(
            self.tokens.to(device=device, dtype=dtype),
            self.mask.to(device=device),
            self.global_state.to(device=device, dtype=dtype),
            self.local_states.to(device=device, dtype=dtype),
            self.local_mask.to(device=device),
            None if self.ids is None else self.ids.to(device=device),
        )


@dataclass(frozen=True)
class BaseTextStates:
    """Output of the base model's text encoders: tokens B M W and, where the base has one, the pooled vector B P.

    `empty_tokens` (B M W) and `empty_pooled` (B P) are those of the empty prompt that the base was trained with.
    """

    tokens: Tensor
    pooled: Tensor | None
    empty_tokens: Tensor
    empty_pooled: Tensor | None

    def map(self, change: Callable[[Tensor], Tensor]) -> BaseTextStates:
        """Applies `change` to every tensor."""
        return BaseTextStates(
            change(self.tokens),
            None if self.pooled is None else change(self.pooled),
            change(self.empty_tokens),
            None if self.empty_pooled is None else change(self.empty_pooled),
        )

    def unconditional_unless(self, keep: Tensor) -> BaseTextStates:
        """Replaces the rows where `keep` (B, bool) is False by those of the empty prompt."""
        pooled = self.pooled
        if pooled is not None:
            assert self.empty_pooled is not None
            pooled = pooled.where(keep[:, None], self.empty_pooled)
        return replace(self, tokens=self.tokens.where(keep[:, None, None], self.empty_tokens), pooled=pooled)


@dataclass(frozen=True)
class Conditioning:
    """t of Eq. 2 as the UNets take it: tokens B K D with mask B K (True = attend) and pooled B D.

    `base_text`: the output of the base model's text encoders, None without them. `size`: height and width of the images
    in pixels, for UNets that are conditioned on it (SDXL); None where it is not set.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor
    base_text: BaseTextStates | None = None
    size: tuple[int, int] | None = None

    def select(self, index: Tensor) -> Conditioning:
        """The rows of `index` (B', integer or boolean)."""
        base_text = None if self.base_text is None else self.base_text.map(lambda x: x[index])
        return Conditioning(self.tokens[index], self.mask[index], self.pooled[index], base_text, self.size)

    def unconditional_unless(self, keep: Tensor) -> Conditioning:
        """Replaces the rows where `keep` (B, bool) is False by the unconditional t of classifier-free guidance.

        That is all zeros with a mask of True; no prompt yields it, as the tokens of every prompt come out of a layer
        norm. The base model's text encoders contribute their states of the empty prompt.
        """
        weights = keep.to(self.tokens.dtype)
        return Conditioning(
            self.tokens * weights[:, None, None],
            self.mask | ~keep[:, None],
            self.pooled * weights[:, None],
            None if self.base_text is None else self.base_text.unconditional_unless(keep),
            self.size,
        )


class OCREngine(Protocol):
    """An OCR engine. `read` may be called from several threads at once."""

    name: str  # with version, to state beside every figure that rests on it

    def read(self, image: np.ndarray) -> tuple[TextLine, ...]:
        """The lines of an image (H W 3, uint8) with polygons in 0..1 and confidences, in the engine's order."""

    def read_line(self, crop: np.ndarray) -> str:
        """The text of a crop (H W 3, uint8) of one line, whatever its confidence."""


class Denoiser(Protocol):
    """A diffusion model as guidance and solvers call it: its prediction (B C h w) for x_t (B C h w) at timesteps (B).

    `conditioning` is t; `z` (B C h w) is given where it takes a layout, and the inpainting channels `edit`
    (B 1+C h w) where it edits images.
    """

    def __call__(
        self,
        x_t: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        z: Tensor | None = None,
        edit: Tensor | None = None,
    ) -> Tensor: ...
