"""A base model's own text encoders (Stable Diffusion's CLIPs), beside the LVLM and the CCM; always frozen.

    prompts -- tokenizer --> ids, filled up --> encoder --> tokens B M W
                                            (SDXL: two encoders, side by side in W; pooled B P of the last)

Letters: B batch, M tokens of the encoders' context (77), W and P widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from vlad.models.options import BaseTextOptions
from vlad.types import BaseTextStates, Prompt
from vlad.utils.hub import without_bars

# The classes that Stable Diffusion's folders name.
ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")


def load_base_text_encoder(
    path: str, part: str, tokenizer_part: str, encoder_class: str, source: Mapping[str, Any]
) -> tuple[nn.Module, Any, dict[str, Any]]:
    """A text encoder of `ENCODERS` in float32 and its tokenizer, from the parts of a pipeline; and the names of weights
    that differ from its config. Raises whatever transformers raises."""
    wanted = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    with without_bars():
        encoder, info = getattr(transformers, encoder_class).from_pretrained(path, subfolder=part, **wanted, **source)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(
        path, subfolder=tokenizer_part, revision=source.get("revision")
    )
    return encoder, tokenizer, info


def context_tokens(encoder: Any) -> int:
    """How many tokens a text encoder reads: its own number, as a tokenizer's is often left open."""
    return int(encoder.config.max_position_embeddings)


class BaseTextEncoders(nn.Module):
    """Prompts as the base has always read them, each whole sentence filled up or cut to the encoders' context."""

    def __init__(self, encoders: Sequence[nn.Module], tokenizers: Sequence[Any], options: BaseTextOptions) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders).requires_grad_(False)
        self.tokenizers, self.options = tuple(tokenizers), options
        self.train()

    def train(self, mode: bool = True) -> BaseTextEncoders:
        """Never in train mode: nothing here is trained."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, prompts: Sequence[Prompt]) -> BaseTextStates:
        texts = [prompt.text for prompt in prompts]
        read = [self._read(*pair, [*texts, ""]) for pair in zip(self.encoders, self.tokenizers, strict=True)]
        tokens = torch.cat([states for states, _ in read], dim=-1)  # B+1 M W
        pooled = read[-1][1]  # B+1 P
        states = BaseTextStates(tokens[:-1], None, tokens[-1:].expand(len(texts), -1, -1), None)
        if pooled is not None:
            empty = pooled[-1:].expand(len(texts), -1)
            states = BaseTextStates(states.tokens, pooled[:-1], states.empty_tokens, empty)
        if self.options.empty_as_zeros:
            none = None if states.empty_pooled is None else torch.zeros_like(states.empty_pooled)
            states = BaseTextStates(states.tokens, states.pooled, torch.zeros_like(states.empty_tokens), none)
        return states

    def _read(self, encoder: Any, tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor | None]:
        """Token states, and the pooled vector of an encoder with a projection."""
        read = tokenizer(
            texts, padding="max_length", max_length=context_tokens(encoder), truncation=True, return_tensors="pt"
        )
        masked = getattr(encoder.config, "use_attention_mask", False)
        output = encoder(
            read.input_ids.to(encoder.device),
            attention_mask=read.attention_mask.to(encoder.device) if masked else None,
            output_hidden_states=self.options.states == "penultimate",
        )
        tokens = output.last_hidden_state if self.options.states == "last" else output.hidden_states[-2]
        return tokens, getattr(output, "text_embeds", None)
