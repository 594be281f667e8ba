"""The composition module: what it hands on, what padding may not touch, and where gradients arrive."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vlad.records import Conditioning
from vlad.text.composition import CompositionModule, TextSide
from vlad.text.lvlm import LVLMEncoder, LVLMOptions, load_lvlm
from vlad.text.prompt import parse_prompt

TINY = LVLMOptions(hidden_size=24, layers=1, heads=2, vision_hidden_size=16, vision_layers=1, vision_pixels=32)
PROMPTS = [
    parse_prompt('a blue sign, an old tree and a door that says "HI" or "日本"'),
    parse_prompt("on"),
    parse_prompt("a poster that says “ZEBRA”"),
]
KINDS = pytest.mark.parametrize("kind", ["transformer", "none"])
SPELLING = pytest.mark.parametrize("spelling", [True, False])


def build(kind: str = "transformer", spelling: bool = True) -> TextSide:
    torch.manual_seed(0)
    lvlm = LVLMEncoder(*load_lvlm(TINY), TINY)
    composition = CompositionModule(
        lvlm.width,
        kind,
        width=16,
        layers=2,
        heads=2,
        output_width=20,
        spelling=spelling,
        max_characters=6,
        max_strings=3,
    )
    return TextSide(lvlm, composition).eval()


def random_projection(t: Conditioning) -> Tensor:
    """A sum over all that is handed on, whose gradient no layer norm cancels."""
    generator = torch.Generator().manual_seed(1)
    return sum((x * torch.randn(x.shape, generator=generator)).sum() for x in (t.tokens, t.pooled))


@KINDS
@SPELLING
@torch.no_grad()
def test_tokens_are_the_global_one_then_the_parts_then_the_characters(kind: str, spelling: bool) -> None:
    text_side = build(kind, spelling)
    states = text_side.lvlm(PROMPTS)

    t = text_side(PROMPTS)

    parts = states.mask if kind == "none" else states.local_mask
    wanted = [torch.ones(3, 1, dtype=torch.bool), parts]
    if spelling:
        wanted.append(torch.tensor([[True] * 4 + [False], [False] * 5, [True] * 5]))  # HI and 日本, nothing, ZEBRA
    assert torch.equal(t.mask, torch.cat(wanted, dim=1))
    assert t.tokens.shape == (*t.mask.shape, 20)
    assert t.pooled.shape == (3, 20)
    assert t.pooled.isfinite().all()
    assert t.tokens.isfinite().all()
    assert t.tokens[~t.mask].abs().max() == 0


@KINDS
@SPELLING
@torch.no_grad()
def test_a_prompt_reads_the_same_alone_and_in_company(kind: str, spelling: bool) -> None:
    text_side = build(kind, spelling)

    together = text_side(PROMPTS)

    for row, prompt in enumerate(PROMPTS):
        alone = text_side([prompt])
        torch.testing.assert_close(together.pooled[row], alone.pooled[0], atol=1e-5, rtol=1e-5)
        kept, kept_alone = together.tokens[row, together.mask[row]], alone.tokens[0, alone.mask[0]]
        torch.testing.assert_close(kept, kept_alone, atol=1e-5, rtol=1e-5)


@KINDS
@torch.no_grad()
def test_what_is_masked_out_never_changes_what_is_kept(kind: str) -> None:
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


@torch.no_grad()
def test_the_transformer_composes_phrases_and_characters_into_the_pooled_state() -> None:
    text_side = build()
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
def test_without_composition_the_prompt_s_own_tokens_go_on_and_phrases_are_not_read() -> None:
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


def test_the_pooled_state_alone_trains_the_spelling() -> None:
    text_side = build()
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
