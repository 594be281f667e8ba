"""The tiny LVLM: tokenizer round trips, padding, pooling, image patches as transformers cuts them, loading errors."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DetrConfig, Qwen2Config, Qwen2Model
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vlad.models.options import LVLMOptions
from vlad.models.text_encoder.lvlm import LVLMEncoder
from vlad.models.text_encoder.lvlm_loading import load_lvlm, load_vision_encoder
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.models.text_encoder.tiny_qwen import SPECIAL_TOKENS, build_byte_tokenizer, build_tiny_qwen
from vlad.models.text_encoder.vision_tower import qwen_patches
from vlad.utils.errors import UserError

TINY = LVLMOptions(hidden_size=32, layers=2, heads=2, vision_hidden_size=16, vision_layers=1, vision_pixels=32)
TOKENIZER = build_byte_tokenizer()


def build_encoder(options: LVLMOptions = TINY) -> LVLMEncoder:
    torch.manual_seed(0)
    return LVLMEncoder(*load_lvlm(options), options).eval()


@settings(deadline=None, database=None)
@given(st.text())
def test_every_text_survives_the_tokenizer(text: str) -> None:
    encoded = TOKENIZER(text, return_offsets_mapping=True, split_special_tokens=True)

    assert TOKENIZER.decode(encoded["input_ids"]) == text
    # Every character belongs to a token, in order; the bytes of one character share its place.
    places = list(dict.fromkeys(encoded["offset_mapping"]))
    assert [0, *(end for _, end in places)] == [*(start for start, _ in places), len(text)]


def test_common_words_are_one_token_and_other_scripts_bytes() -> None:
    assert len(TOKENIZER("a blue sign that says")["input_ids"]) == 5
    assert len(TOKENIZER("日本")["input_ids"]) == 6


def test_the_tokenizer_is_the_same_every_time_it_is_built() -> None:
    # A run that is taken up again builds it anew.
    assert len({build_byte_tokenizer().backend_tokenizer.to_str() for _ in range(4)}) == 1
    assert len(TOKENIZER) <= build_tiny_qwen(TINY).get_input_embeddings().num_embeddings


@torch.no_grad()
def test_names_of_special_tokens_in_a_prompt_are_plain_text() -> None:
    prompt = parse_prompt("a <|image|> of a <|pad|>")
    plain = TOKENIZER(prompt.text, split_special_tokens=True)["input_ids"]
    assert min(plain) >= len(SPECIAL_TOKENS)

    assert build_encoder()([prompt]).mask.sum() == len(plain) > len(TOKENIZER(prompt.text)["input_ids"])


@pytest.mark.parametrize("pooling", ["mean", "last"])
@torch.no_grad()
def test_padding_never_leaks(pooling: str) -> None:
    encoder = build_encoder(replace(TINY, pooling=pooling))
    prompts = [
        parse_prompt(text)
        for text in (
            "on",
            'a sign: "日本"',
            'an old blue wooden sign under a tall tree that says "HOUSE" in white letters',
        )
    ]

    together = encoder(prompts)

    assert together.mask.sum(dim=1).unique().numel() == 3  # they are of different lengths
    for row, prompt in enumerate(prompts):
        alone = encoder([prompt])
        length, phrases = alone.tokens.shape[1], len(prompt.phrases)
        assert together.mask[row].tolist() == [True] * length + [False] * (together.mask.shape[1] - length)
        assert together.local_mask[row].sum() == phrases
        torch.testing.assert_close(together.tokens[row, :length], alone.tokens[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.global_state[row], alone.global_state[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            together.local_states[row, :phrases], alone.local_states[0, :phrases], atol=1e-5, rtol=1e-5
        )


@torch.no_grad()
def test_states_of_a_phrase_and_of_the_prompt_are_means_of_their_tokens() -> None:
    encoder = build_encoder()
    prompt = parse_prompt("青い看板, 赤い扉 „日本“")  # a token a byte

    states = encoder([prompt])

    assert states.tokens.shape[1] == len(prompt.text.encode())
    assert [phrase.text for phrase in prompt.phrases] == ["青い看板", "赤い扉"]
    for index, phrase in enumerate(prompt.phrases):
        first, last = len(prompt.text[: phrase.start].encode()), len(prompt.text[: phrase.end].encode())
        torch.testing.assert_close(states.local_states[0, index], states.tokens[0, first:last].mean(dim=0))
    torch.testing.assert_close(states.global_state[0], states.tokens[0].mean(dim=0))


@torch.no_grad()
def test_a_phrase_that_was_cut_off_is_masked() -> None:
    encoder = build_encoder(replace(TINY, max_tokens=12))
    states = encoder([parse_prompt("青い看板, 赤い扉")])

    assert states.tokens.shape[1] == 12  # the bytes of the first phrase
    assert states.local_mask.tolist() == [[True, False]]
    assert states.local_states[0, 1].abs().max() == 0


def test_image_embeddings_have_the_width_of_t_and_carry_gradients() -> None:
    encoder = build_encoder()
    pixels = torch.rand(3, 3, 48, 48) * 2 - 1  # not the tower's own size: scaled
    pixels.requires_grad_()

    v = encoder.image_embeddings(pixels)

    assert v.shape == (3, encoder.width)
    v[1].square().sum().backward()
    assert pixels.grad is not None
    assert pixels.grad[1].abs().max() > 0
    assert pixels.grad[0].abs().max() == 0  # each image by itself
    assert all(parameter.grad is not None for parameter in encoder.model.visual.parameters())


@torch.no_grad()
def test_an_image_embedding_does_not_depend_on_its_batch() -> None:
    encoder = build_encoder()
    pixels = torch.rand(4, 3, 32, 32) * 2 - 1

    together = encoder.image_embeddings(pixels)

    torch.testing.assert_close(together[2:3], encoder.image_embeddings(pixels[2:3]), atol=1e-5, rtol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("side", "patch"), [(32, 8), (56, 14)])
def test_patches_are_those_of_transformers_processor(side: int, patch: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": side * side, "longest_edge": side * side},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    wanted = processor(list(images), return_tensors="pt")

    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    patches, grid = qwen_patches(pixels, side, patch, merge=2, frames=2)

    torch.testing.assert_close(patches, wanted["pixel_values"], atol=1e-5, rtol=0)
    assert grid.tolist() == wanted["image_grid_thw"].tolist()


@torch.no_grad()
def test_a_saved_model_loads_with_equal_states(tmp_path: Path) -> None:
    encoder = build_encoder()
    encoder.model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    options = replace(TINY, path=str(tmp_path))

    loaded = LVLMEncoder(*load_lvlm(options), options).eval()

    prompts = [parse_prompt('a sign that says "日本"'), parse_prompt("an owl")]
    before, after = encoder(prompts), loaded(prompts)
    assert torch.equal(before.tokens, after.tokens)
    assert torch.equal(before.global_state, after.global_state)
    assert torch.equal(before.local_states, after.local_states)
    pixels = torch.rand(1, 3, 32, 32)
    assert torch.equal(encoder.image_embeddings(pixels), loaded.image_embeddings(pixels))


def test_half_precision_weights_are_loaded_in_full_precision_only_for_training(tmp_path: Path) -> None:
    encoder = build_encoder()
    encoder.model.to(torch.bfloat16).save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)

    for full, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        model, _ = load_lvlm(replace(TINY, path=str(tmp_path)), full=full)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Qwen2Config(hidden_size=32, num_hidden_layers=1), "is a qwen2 model without a vision tower"),
        (DetrConfig(), "is a detr model; supported: aria, blip-2, clip, .*siglip.* and any causal"),
        (None, "holds no model that transformers can load"),
    ],
)
def test_a_folder_of_another_kind_is_refused(
    tmp_path: Path, config: Qwen2Config | DetrConfig | None, message: str
) -> None:
    if config is not None:
        config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        load_lvlm(replace(TINY, path=str(tmp_path)))


def test_an_incomplete_folder_is_refused_by_what_it_lacks(tmp_path: Path) -> None:
    encoder = build_encoder()
    encoder.model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds no tokenizer that transformers can load"):
        load_lvlm(LVLMOptions(path=str(tmp_path)))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="holds no model that transformers can load"):
        load_lvlm(LVLMOptions(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "wide"}, "holds no model that transformers can load .*hidden_size.* expected int"),
        ({"num_attention_heads": 0}, "holds no model that transformers can load .*ZeroDivisionError"),
        ({"intermediate_size": 40}, r"do not fit its config, 3 tensors .*mlp.* 24x32 where the config says 40x32"),
        ({"model_type": "qwen77"}, "is a qwen77 model; supported: aria, .* and any causal language model"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
    Qwen2Model(Qwen2Config(**sizes, intermediate_size=24, vocab_size=1024)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message) as caught:
        load_lvlm(LVLMOptions(path=str(tmp_path)), with_vision=False)
    assert "\n" not in str(caught.value)


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    encoder = build_encoder()
    encoder.model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="holds no tokenizer that transformers can load"):
        load_lvlm(LVLMOptions(path=str(tmp_path)))


def test_a_missing_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lvlm\.path: .*nowhere is neither a local folder nor reachable on the hub"):
        load_lvlm(replace(TINY, path=str(tmp_path / "nowhere")))


def test_a_hub_id_out_of_reach_says_how_to_give_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    for option, load in (("lvlm.path", load_lvlm), ("lvlm.vision_path", load_vision_encoder)):
        options = LVLMOptions(path="nobody/never-uploaded", vision_path="nobody/never-uploaded")
        with pytest.raises(UserError, match=rf"{option}: nobody/never-uploaded is neither .* give that folder\."):
            load(options)


def test_a_frozen_lvlm_stays_in_eval_mode() -> None:
    encoder = build_encoder().train()
    assert encoder.model.training
    encoder.model.requires_grad_(False)
    assert not encoder.train().model.training
    encoder.model.language_model.norm.requires_grad_(True)
    assert encoder.train().model.training
