"""A base model's text encoders (Stable Diffusion's CLIPs), always frozen; their tokens join the CCM's.

    prompts -- tokenizer --> padded ids --> encoder --> tokens B M W
                                            (SDXL: two encoders, concatenated in W; pooled B P of the second)

Letters: B batch, M tokens of the encoders' context (77), W and P widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlad.models.options import BaseTextOptions
from vlad.types import BaseTextStates, Prompt

# The classes of Stable Diffusion's text encoders.
ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")


def context_tokens(encoder: Any) -> int:
    """A text encoder's context in tokens, from its config: a tokenizer's is often not set."""
    return int(encoder.config.max_position_embeddings)


class BaseTextEncoders(nn.Module):
    """Encodes prompts as the base model does: the whole sentence, padded or cut to the encoders' context."""

    def __init__(self, encoders: Sequence[nn.Module], tokenizers: Sequence[Any], options: BaseTextOptions) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders).requires_grad_(False)
        self.tokenizers, self.options = tuple(tokenizers), options
        self.train()

    def train(self, mode: bool = True) -> BaseTextEncoders:
        """Stays in eval mode: nothing here is trained."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, prompts: Sequence[Prompt]) -> BaseTextStates:
        texts = [prompt.text for prompt in prompts]
        pairs = zip(self.encoders, self.tokenizers, strict=True)
        encoded = [self._encode(*pair, [*texts, ""]) for pair in pairs]
        tokens = torch.cat([states for states, _ in encoded], dim=-1)  # B+1 M W
        pooled = encoded[-1][1]  # B+1 P
        empty_tokens, empty_pooled = tokens[-1:], None if pooled is None else pooled[-1:]
        if self.options.empty_as_zeros:
            empty_tokens = torch.zeros_like(empty_tokens)
            empty_pooled = None if empty_pooled is None else torch.zeros_like(empty_pooled)
        return BaseTextStates(
            tokens[:-1],
            None if pooled is None else pooled[:-1],
            empty_tokens.expand(len(texts), -1, -1),
            None if empty_pooled is None else empty_pooled.expand(len(texts), -1),
        )

    def _encode(self, encoder: Any, tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor | None]:
        """Token states, and the pooled vector of an encoder with a projection."""
        batch = tokenizer(
            texts, padding="max_length", max_length=context_tokens(encoder), truncation=True, return_tensors="pt"
        )
        uses_mask = getattr(encoder.config, "use_attention_mask", False)
        output = encoder(
            batch.input_ids.to(encoder.device),
            attention_mask=batch.attention_mask.to(encoder.device) if uses_mask else None,
            output_hidden_states=self.options.states == "penultimate",
        )
        tokens = output.last_hidden_state if self.options.states == "last" else output.hidden_states[-2]
        return tokens, getattr(output, "text_embeds", None)
