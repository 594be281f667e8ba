"""The Contextual Composition Module, t = f_CCM(t_g, {t_i}) (Eq. 2), and the text side: LVLM, spelling tokens, CCM.

    prompts -- LVLMEncoder --> t_g, {t_i}, token states --+
            -- SpellingEncoder --> spelling tokens -------+--> CCM --> Conditioning (tokens, mask, pooled)

    kind          Conditioning tokens
    transformer   t_g, {t_i} and spelling tokens after self-attention over all of them
    q-former      learned queries after cross-attention to t_g, {t_i} and spelling tokens; then the spelling tokens
    none          t_g and the LVLM's tokens through one projection; spelling tokens

Letters: B batch, L LVLM tokens, N phrases or slots, S characters, Q queries, K conditioning tokens, D widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from vlad.models.options import CompositionOptions
from vlad.models.spelling_tokens import SpellingEncoder
from vlad.models.text_encoder.base_encoders import BaseTextEncoders
from vlad.models.text_encoder.lvlm import LVLMEncoder
from vlad.types import Conditioning, Prompt, TextStates

# The pooled vector is the output for t_g plus, bypassing the transformer, the {t_i}, times this gain. A new CCM mixes
# all its inputs: the one phrase that says where the text goes is lost among the letters, and a UNet trained along
# with the CCM does not find it in 700 steps (docs/LOG.md).
POOLED_GAIN = 3.0


class SlotQueries(nn.Module):
    """{t_i} from learned queries, for prompts whose objects no phrase names: each slot attends to one."""

    def __init__(self, slots: int, width: int, heads: int) -> None:
        super().__init__()
        self.slots = nn.Embedding(slots, width)  # an embedding, so that weight decay leaves it out
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The slots' states B N D, by cross-attention to projected LVLM tokens B L D with mask B L."""
        queries = self.slots.weight.expand(len(tokens), -1, -1)
        read, _ = self.attention(self.norm(queries), tokens, tokens, key_padding_mask=~mask, need_weights=False)
        return queries + read


class CompositionModule(ModelMixin, ConfigMixin):
    """f_CCM (Eq. 2) and the spelling encoder."""

    @register_to_config
    def __init__(
        self,
        lvlm_width: int,
        kind: str = "transformer",
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        output_width: int = 128,
        spelling: bool = True,
        max_characters: int = 8,
        max_strings: int = 3,
        locals: str = "phrases",
        slots: int = 4,
        queries: int = 16,
    ) -> None:
        super().__init__()
        CompositionOptions(  # a stranger's config, too, is within the limits
            *(kind, locals, slots, queries, width, layers, heads, output_width, spelling, max_characters, max_strings)  # type: ignore[arg-type]
        )
        self.spelling_encoder = SpellingEncoder(width, max_characters, max_strings) if spelling else None
        self.from_lvlm = nn.Sequential(nn.LayerNorm(lvlm_width), nn.Linear(lvlm_width, width))
        self.blocks: nn.ModuleList | None = None
        self.query_table: nn.Embedding | None = None
        self.slot_queries: SlotQueries | None = None
        if kind != "none":
            self.kinds = nn.Embedding(3, width)  # global, local, spelling
            nn.init.normal_(self.kinds.weight, std=0.5)
        if kind == "transformer":
            self.blocks = nn.ModuleList(
                nn.TransformerEncoderLayer(
                    width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(layers)
            )
        if kind == "q-former":
            self.query_table = nn.Embedding(queries, width)
            self.blocks = nn.ModuleList(
                nn.TransformerDecoderLayer(
                    width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(layers)
            )
        if locals == "slots":
            self.slot_queries = SlotQueries(slots, width, heads)
        self.to_output = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, output_width))
        self.to_pooled = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, output_width))

    def forward(self, states: TextStates, prompts: Sequence[Prompt]) -> Conditioning:
        parts, masks = self._parts(states, prompts)
        x, mask = torch.cat(parts, dim=1), torch.cat(masks, dim=1)  # B K D, B K
        if self.query_table is not None:
            x, mask = self._queried(x, mask, parts, masks)
        else:
            for layer in self.blocks or ():
                x = layer(x, src_key_padding_mask=~mask)
        tokens = self.to_output(x) * mask[..., None]
        pooled = x[:, 0] + _masked_sum(parts[1], masks[1])
        return Conditioning(tokens, mask, POOLED_GAIN * self.to_pooled(pooled))

    def _queried(
        self, memory: Tensor, memory_mask: Tensor, parts: list[Tensor], masks: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The queries' outputs, then the spelling tokens: Q queries cannot hold any number of letters."""
        assert self.query_table is not None and self.blocks is not None
        x = self.query_table.weight.expand(len(memory), -1, -1)  # B Q D
        for layer in self.blocks:
            x = layer(x, memory, memory_key_padding_mask=~memory_mask)
        query_mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return torch.cat([x, *parts[2:]], dim=1), torch.cat([query_mask, *masks[2:]], dim=1)

    def _parts(self, states: TextStates, prompts: Sequence[Prompt]) -> tuple[list[Tensor], list[Tensor]]:
        t_g = self.from_lvlm(states.global_state)[:, None]  # B 1 D
        present = torch.ones(len(prompts), 1, dtype=torch.bool, device=t_g.device)
        if self.config.kind == "none":
            parts, masks = [t_g, self.from_lvlm(states.tokens)], [present, states.mask]
        else:
            t_i, local_mask = self._locals(states)  # B N D
            parts, masks = [t_g + self.kinds.weight[0], t_i + self.kinds.weight[1]], [present, local_mask]
        if self.spelling_encoder is not None:
            characters, mask = self.spelling_encoder(prompts)  # B S D
            if self.config.kind != "none":
                characters = characters + self.kinds.weight[2]
            parts.append(characters.to(t_g.dtype))
            masks.append(mask)
        return parts, masks

    def _locals(self, states: TextStates) -> tuple[Tensor, Tensor]:
        if self.slot_queries is None:
            return self.from_lvlm(states.local_states), states.local_mask
        t_i = self.slot_queries(self.from_lvlm(states.tokens), states.mask)
        return t_i, torch.ones(t_i.shape[:2], dtype=torch.bool, device=t_i.device)


def _masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """The sum of the unmasked tokens, divided by the square root of their number: B K D -> B D."""
    weights = mask.to(x.dtype)
    return (x * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True).clamp_min(1).sqrt()


class TextSide(nn.Module):
    """Prompts -> Conditioning: the LVLM and the CCM as one differentiable module, beside a base's text encoders."""

    def __init__(
        self, lvlm: LVLMEncoder, composition: CompositionModule, base_encoders: BaseTextEncoders | None = None
    ) -> None:
        super().__init__()
        self.lvlm = lvlm
        self.composition = composition
        self.base_encoders = base_encoders

    def forward(self, prompts: Sequence[Prompt]) -> Conditioning:
        return self.compose(self.lvlm(prompts), prompts)

    def compose(self, states: TextStates, prompts: Sequence[Prompt]) -> Conditioning:
        """t from the LVLM's states of the prompts, which may be in a lower precision than the CCM."""
        t = self.composition(states.to(dtype=self.composition.dtype), prompts)
        return t if self.base_encoders is None else replace(t, base_text=self.base_encoders(prompts))
