"""The Contextual Composition Module, t = f_CCM(t_g, {t_i}) (Eq. 2), and the whole text side around it.

    prompts -- LVLMEncoder --> t_g, {t_i}, token states --+
            -- SpellingEncoder --> spelling tokens -------+--> CCM --> Conditioning (tokens, mask, pooled)

Letters: B batch, L LVLM tokens, N phrases, S characters, K conditioning tokens, D widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from vlad.errors import UserError
from vlad.records import Conditioning, Prompt, TextStates
from vlad.text.characters import SpellingEncoder
from vlad.text.lvlm import LVLMEncoder

# The pooled vector is what t_g became and, past the transformer, the {t_i} themselves, enlarged. A new CCM mixes
# everything into everything; the one phrase that says where the text stands drowns in the letters, and a UNet that
# trains along does not find it in 700 steps (docs/LOG.md).
POOLED_GAIN = 3.0


@dataclass(frozen=True)
class CompositionOptions:
    """`kind: none` is the paper's ablation: the LVLM's tokens go straight on through one projection."""

    kind: Literal["transformer", "none"] = "transformer"
    width: int = 128
    layers: int = 2
    heads: int = 4
    # Width of the tokens that the UNets' cross-attention takes.
    output_width: int = 128
    spelling: bool = True
    # The longest string and the most strings a layout holds.
    max_characters: int = 8
    max_strings: int = 3

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise UserError(f"composition: width ({self.width}) must be a multiple of heads ({self.heads}).")


class CompositionModule(ModelMixin, ConfigMixin):
    """f_CCM with its spelling tokens (Eq. 2)."""

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
    ) -> None:
        super().__init__()
        self.spelling_encoder = SpellingEncoder(width, max_characters, max_strings) if spelling else None
        self.from_lvlm = nn.Sequential(nn.LayerNorm(lvlm_width), nn.Linear(lvlm_width, width))
        self.blocks: nn.ModuleList | None = None
        if kind == "transformer":
            self.kinds = nn.Embedding(3, width)  # global, local, spelling
            nn.init.normal_(self.kinds.weight, std=0.5)
            self.blocks = nn.ModuleList(
                nn.TransformerEncoderLayer(
                    width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(layers)
            )
        self.to_output = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, output_width))
        self.to_pooled = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, output_width))

    def forward(self, states: TextStates, prompts: Sequence[Prompt]) -> Conditioning:
        parts, masks = self._parts(states, prompts)
        x, mask = torch.cat(parts, dim=1), torch.cat(masks, dim=1)  # B K D, B K
        for layer in self.blocks or ():
            x = layer(x, src_key_padding_mask=~mask)
        tokens = self.to_output(x) * mask[..., None]
        pooled = x[:, 0] + _masked_sum(parts[1], masks[1])
        return Conditioning(tokens, mask, POOLED_GAIN * self.to_pooled(pooled))

    def _parts(self, states: TextStates, prompts: Sequence[Prompt]) -> tuple[list[Tensor], list[Tensor]]:
        t_g = self.from_lvlm(states.global_state)[:, None]  # B 1 D
        present = torch.ones(len(prompts), 1, dtype=torch.bool, device=t_g.device)
        if self.config.kind == "none":
            parts, masks = [t_g, self.from_lvlm(states.tokens)], [present, states.mask]
        else:
            t_i = self.from_lvlm(states.local_states)  # B N D
            parts, masks = [t_g + self.kinds.weight[0], t_i + self.kinds.weight[1]], [present, states.local_mask]
        if self.spelling_encoder is not None:
            characters, mask = self.spelling_encoder(prompts)  # B S D
            if self.config.kind != "none":
                characters = characters + self.kinds.weight[2]
            parts.append(characters.to(t_g.dtype))
            masks.append(mask)
        return parts, masks


def _masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """The sum over the tokens that exist, over the square root of their number: B K D -> B D."""
    weights = mask.to(x.dtype)
    return (x * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True).clamp_min(1).sqrt()


class TextSide(nn.Module):
    """Prompts -> Conditioning: the LVLM and the CCM as one differentiable step."""

    def __init__(self, lvlm: LVLMEncoder, composition: CompositionModule) -> None:
        super().__init__()
        self.lvlm = lvlm
        self.composition = composition

    def forward(self, prompts: Sequence[Prompt]) -> Conditioning:
        return self.composition(self.lvlm(prompts).to(self.composition.dtype), prompts)
