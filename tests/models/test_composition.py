"""The CCM: its outputs against the formulas, masks and padding, gradients to every parameter."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlad.models.autoencoder import PatchAutoencoder
from vlad.models.composition import POOLED_GAIN, CompositionModule, TextSide
from vlad.models.options import CompositionOptions, LVLMOptions
from vlad.models.text_encoder.lvlm import LVLMEncoder
from vlad.models.text_encoder.lvlm_loading import load_lvlm
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.types import Conditioning
from vlad.utils.errors import UserError

TINY = LVLMOptions(hidden_size=24, layers=1, heads=2, vision_hidden_size=16, vision_layers=1, vision_pixels=32)
PROMPTS = [
    parse_prompt('a blue sign, an old tree and a door that says "HI" or "日本"'),
    parse_prompt("on"),
    parse_prompt("a poster that says “ZEBRA”"),
]
KINDS = pytest.mark.parametrize("kind", ["transformer", "none", "q-former", "transformer, slots", "q-former, slots"])
SPELLING = pytest.mark.parametrize("spelling", [True, False])


def build(kind: str = "transformer", spelling: bool = True) -> TextSide:
    torch.manual_seed(0)
    lvlm = LVLMEncoder(*load_lvlm(TINY), TINY)
    composition = CompositionModule(
        lvlm.width,
        kind.removesuffix(", slots"),
        width=16,
        layers=2,
        heads=2,
        output_width=20,
        spelling=spelling,
        max_characters=6,
        max_strings=3,
        locals="slots" if kind.endswith("slots") else "phrases",
        slots=4,
        queries=5,
    )
    return TextSide(lvlm, composition).eval()


def random_projection(t: Conditioning) -> Tensor:
    """A sum over all that is handed on, whose gradient no layer norm cancels."""
    generator = torch.Generator().manual_seed(1)
    return sum((x * torch.randn(x.shape, generator=generator)).sum() for x in (t.tokens, t.pooled))


@KINDS
@SPELLING
@torch.no_grad()
def test_tokens_are_the_composed_ones_then_the_characters(kind: str, spelling: bool) -> None:
    text_side = build(kind, spelling)
    states = text_side.lvlm(PROMPTS)

    t = text_side(PROMPTS)

    here = torch.ones(3, 5, dtype=torch.bool)
    wanted = {
        "transformer": [here[:, :1], states.local_mask],
        "none": [here[:, :1], states.mask],
        "transformer, slots": [here[:, :1], here[:, :4]],  # t_g and 4 slots
    }.get(kind, [here])  # 5 queries
    if spelling:
        wanted.append(torch.tensor([[True] * 4 + [False], [False] * 5, [True] * 5]))  # HI and 日本, nothing, ZEBRA
    assert torch.equal(t.mask, torch.cat(wanted, dim=1))
    assert t.tokens.shape == (*t.mask.shape, 20)
    assert t.pooled.shape == (3, 20)
    assert t.pooled.isfinite().all()
    assert t.tokens.isfinite().all()
    assert (t.tokens[~t.mask] == 0).all()


@KINDS
@SPELLING
@torch.no_grad()
def test_a_prompt_s_conditioning_does_not_depend_on_its_batch(kind: str, spelling: bool) -> None:
    text_side = build(kind, spelling)

    together = text_side(PROMPTS)

    for row, prompt in enumerate(PROMPTS):
        alone = text_side([prompt])
        torch.testing.assert_close(together.pooled[row], alone.pooled[0], atol=1e-5, rtol=1e-5)
        kept, kept_alone = together.tokens[row, together.mask[row]], alone.tokens[0, alone.mask[0]]
        torch.testing.assert_close(kept, kept_alone, atol=1e-5, rtol=1e-5)


@KINDS
@torch.no_grad()
def test_masked_tokens_change_nothing(kind: str) -> None:
    text_side = build(kind)
    states = text_side.lvlm(PROMPTS)
    rubbish = replace(
        states,
        tokens=states.tokens.masked_fill(~states.mask[..., None], 7.0),
        local_states=states.local_states.masked_fill(~states.local_mask[..., None], -3.0),
    )
    assert not torch.equal(states.local_states, rubbish.local_states)

    clean, dirty = text_side.composition(states, PROMPTS), text_side.composition(rubbish, PROMPTS)

    torch.testing.assert_close(clean.pooled, dirty.pooled, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(clean.tokens, dirty.tokens, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["transformer", "q-former"])
@torch.no_grad()
def test_phrases_and_characters_are_composed_into_the_pooled_state(kind: str) -> None:
    text_side = build(kind)
    states = text_side.lvlm(PROMPTS)
    before = text_side.composition(states, PROMPTS).pooled

    phrases = replace(states, local_states=states.local_states.flip(-1))
    spelled = [parse_prompt(prompt.text.replace("ZEBRA", "APPLE")) for prompt in PROMPTS]

    by_phrase = (text_side.composition(phrases, PROMPTS).pooled - before).abs().amax(dim=1)
    assert by_phrase[0] > 1e-4
    assert by_phrase[1] == 0  # has none
    by_string = (text_side.composition(states, spelled).pooled - before).abs().amax(dim=1)
    assert by_string[2] > 1e-4
    assert by_string[:2].max() == 0


@torch.no_grad()
def test_kind_none_passes_the_lvlm_s_tokens_and_no_phrases() -> None:
    text_side = build("none")
    states = text_side.lvlm(PROMPTS)
    t = text_side.composition(states, PROMPTS)

    no_phrases = text_side.composition(replace(states, local_states=states.local_states.flip(-1)), PROMPTS)
    other_tokens = text_side.composition(replace(states, tokens=states.tokens.flip(-1)), PROMPTS)
    other_global = text_side.composition(replace(states, global_state=states.global_state.flip(-1)), PROMPTS)

    assert torch.equal(no_phrases.tokens, t.tokens)
    assert torch.equal(no_phrases.pooled, t.pooled)
    # Nothing mixes them: each token's state is its own alone.
    changed = (other_tokens.tokens - t.tokens).abs().amax(dim=2) > 1e-4
    wanted = t.mask.clone()
    wanted[:, 0] = False
    wanted[:, 1 + states.mask.shape[1] :] = False
    assert torch.equal(changed, wanted)
    assert (other_global.pooled - t.pooled).abs().amax(dim=1).min() > 1e-4


def parameters_without_gradient(text_side: TextSide) -> set[str]:
    return {
        name
        for name, parameter in text_side.named_parameters()
        if "visual" not in name and (parameter.grad is None or parameter.grad.abs().max() == 0)
    }


@KINDS
@SPELLING
def test_gradients_reach_every_parameter_of_the_text_side(kind: str, spelling: bool) -> None:
    text_side = build(kind, spelling).train()
    random_projection(text_side(PROMPTS)).backward()
    assert parameters_without_gradient(text_side) == set()


@pytest.mark.parametrize("kind", ["transformer", "q-former"])
def test_the_pooled_state_alone_trains_the_spelling(kind: str) -> None:
    text_side = build(kind)
    (text_side(PROMPTS).pooled * torch.randn(3, 20)).sum().backward()

    assert text_side.composition.spelling_encoder is not None
    assert all(
        p.grad is not None and p.grad.abs().max() > 0 for p in text_side.composition.spelling_encoder.parameters()
    )


@KINDS
@torch.no_grad()
def test_a_saved_module_loads_with_equal_outputs(kind: str, tmp_path: Path) -> None:
    text_side = build(kind)
    text_side.composition.save_pretrained(tmp_path)
    loaded = CompositionModule.from_pretrained(tmp_path).eval()

    states = text_side.lvlm(PROMPTS)

    assert torch.equal(loaded(states, PROMPTS).tokens, text_side.composition(states, PROMPTS).tokens)


def attend(attention: nn.MultiheadAttention, queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V of each of two heads, one row of a batch at a time."""
    (w_q, w_k, w_v), (b_q, b_k, b_v) = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    rows = []
    for q, k, there in zip(queries @ w_q.T + b_q, keys, mask, strict=True):
        heads = []
        for head in (slice(0, 8), slice(8, 16)):
            k_h, v_h = (k[there] @ w_k.T + b_k)[:, head], (k[there] @ w_v.T + b_v)[:, head]
            heads.append((q[:, head] @ k_h.T / 8**0.5).softmax(dim=1) @ v_h)
        rows.append(torch.cat(heads, dim=1))
    return attention.out_proj(torch.stack(rows))


def feed_forward(layer: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer, x: Tensor) -> Tensor:
    return F.gelu(x @ layer.linear1.weight.T + layer.linear1.bias) @ layer.linear2.weight.T + layer.linear2.bias


@torch.no_grad()
def test_the_transformer_is_its_formula() -> None:
    text_side = build()
    ccm, states = text_side.composition, text_side.lvlm(PROMPTS)
    assert ccm.spelling_encoder is not None
    assert ccm.blocks is not None
    spelled, spelled_mask = ccm.spelling_encoder(PROMPTS)
    t_g = ccm.from_lvlm(states.global_state)[:, None] + ccm.kinds.weight[0]
    t_i = ccm.from_lvlm(states.local_states) + ccm.kinds.weight[1]
    x = torch.cat([t_g, t_i, spelled + ccm.kinds.weight[2]], dim=1)
    mask = torch.cat([torch.ones(3, 1, dtype=torch.bool), states.local_mask, spelled_mask], dim=1)
    for layer in ccm.blocks:
        normed = layer.norm1(x)
        x = x + attend(layer.self_attn, normed, normed, mask)
        x = x + feed_forward(layer, layer.norm2(x))
    counts = states.local_mask.sum(dim=1, keepdim=True).clamp_min(1)
    pooled = x[:, 0] + (t_i * states.local_mask[..., None]).sum(dim=1) / counts**0.5

    t = text_side(PROMPTS)

    torch.testing.assert_close(t.tokens[t.mask], ccm.to_output(x)[mask], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(t.pooled, POOLED_GAIN * ccm.to_pooled(pooled), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_q_former_s_queries_are_followed_by_the_spelling_tokens() -> None:
    text_side = build("q-former")
    ccm, states = text_side.composition, text_side.lvlm(PROMPTS)
    assert ccm.spelling_encoder is not None
    assert ccm.blocks is not None
    assert ccm.query_table is not None
    spelled, spelled_mask = ccm.spelling_encoder(PROMPTS)
    spelled = spelled + ccm.kinds.weight[2]
    t_g = ccm.from_lvlm(states.global_state)[:, None] + ccm.kinds.weight[0]
    memory = torch.cat([t_g, ccm.from_lvlm(states.local_states) + ccm.kinds.weight[1], spelled], dim=1)
    mask = torch.cat([torch.ones(3, 1, dtype=torch.bool), states.local_mask, spelled_mask], dim=1)
    x = ccm.query_table.weight.expand(3, -1, -1)
    for layer in ccm.blocks:
        normed = layer.norm1(x)
        x = x + attend(layer.self_attn, normed, normed, torch.ones(3, 5, dtype=torch.bool))
        x = x + attend(layer.multihead_attn, layer.norm2(x), memory, mask)
        x = x + feed_forward(layer, layer.norm3(x))

    t = text_side(PROMPTS)

    torch.testing.assert_close(t.tokens[:, :5], ccm.to_output(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(t.tokens[:, 5:][spelled_mask], ccm.to_output(spelled)[spelled_mask])


@torch.no_grad()
def test_slots_attend_to_the_prompt_s_tokens_in_place_of_its_phrases() -> None:
    text_side = build("transformer, slots")
    ccm, states = text_side.composition, text_side.lvlm(PROMPTS)
    assert ccm.slot_queries is not None
    tokens, queries = ccm.from_lvlm(states.tokens), ccm.slot_queries.slots.weight.expand(3, -1, -1)
    wanted = queries + attend(ccm.slot_queries.attention, ccm.slot_queries.norm(queries), tokens, states.mask)
    before = ccm(states, PROMPTS)

    torch.testing.assert_close(ccm.slot_queries(tokens, states.mask), wanted, atol=1e-5, rtol=1e-5)
    no_phrases = replace(states, local_states=states.local_states[:, :0], local_mask=states.local_mask[:, :0])
    assert torch.equal(ccm(no_phrases, PROMPTS).tokens, before.tokens)
    other = ccm(replace(states, tokens=states.tokens.flip(-1)), PROMPTS)
    assert (other.tokens - before.tokens).abs().amax(dim=2)[:, 1:5].min() > 1e-4


@KINDS
@SPELLING
@torch.no_grad()
def test_prompts_may_have_any_number_of_objects_and_strings_or_none(kind: str, spelling: bool) -> None:
    text_side = build(kind, spelling)
    many = ", ".join(f'a red thing{number} that says "LONG STRING {number}"' for number in range(12))
    prompts = [parse_prompt(many), parse_prompt("on"), parse_prompt("“only this”")]
    assert [(len(prompt.phrases), len(prompt.quotes)) for prompt in prompts] == [(12, 12), (0, 0), (0, 1)]

    together = text_side(prompts)

    assert together.tokens.isfinite().all()
    for row, prompt in enumerate(prompts):
        alone = text_side([prompt])
        torch.testing.assert_close(together.pooled[row], alone.pooled[0], atol=1e-5, rtol=1e-5)
    states = text_side.lvlm(prompts)
    no_phrases = replace(states, local_states=states.local_states[:, :0], local_mask=states.local_mask[:, :0])
    assert text_side.composition(no_phrases, prompts).pooled.isfinite().all()


@pytest.mark.parametrize(
    "mistake", [{"width": 30, "heads": 4}, {"slots": 0}, {"queries": 0}, {"kind": "none", "locals": "slots"}]
)
def test_options_that_cannot_work_are_refused(mistake: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="composition"):
        CompositionOptions(**mistake)


def test_a_config_of_any_size_is_refused_before_it_takes_the_memory() -> None:
    with pytest.raises(UserError, match=r"composition\.layers is 1000000000000; 1024 is the most"):
        CompositionModule.from_config({"lvlm_width": 8, "layers": 10**12})
    with pytest.raises(UserError, match=r"autoencoder\.decoder_layers"):
        PatchAutoencoder.from_config({"decoder_layers": 10**12})
