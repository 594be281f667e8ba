"""Every family of `tiny_families.py`: saved, loaded, prompts and images encoded, adapters trained."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from tiny_families import NAMES, SEEING, TINY_FAMILIES, VIT

from vlad.lora.inject import add_adapter
from vlad.lora.options import LoraOptions
from vlad.models.options import LVLMOptions
from vlad.models.text_encoder.families import FAMILIES
from vlad.models.text_encoder.lvlm import LVLMEncoder
from vlad.models.text_encoder.lvlm_loading import load_lvlm, load_vision_encoder
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.models.text_encoder.tiny_qwen import build_byte_tokenizer
from vlad.models.text_encoder.vision_tower import EQUAL_IMAGES
from vlad.utils.errors import UserError

PROMPTS = [
    parse_prompt(text)
    for text in ("on", 'a sign: "日本"', 'an old blue sign under a tree that says "HOUSE" in white letters')
]
Folders = Callable[[str], Path]


def tiny_tokenizer(name: str) -> Any:
    """Of the class that the family insists on, else byte-level BPE. ByT5's is a slow one."""
    if name == "byt5":
        return tf.ByT5Tokenizer()
    if name == "siglip2":  # lower-cases; pieces, with bytes for what no piece spells
        pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
        return tf.Siglip2Tokenizer({piece: number for number, piece in enumerate([*pieces, *"abcdefghijklmnop"])}, [])
    return build_byte_tokenizer()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The folder of a family's tiny model as `save_pretrained` makes it; each is made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            torch.manual_seed(0)
            model = TINY_FAMILIES[name].build()
            with torch.no_grad():
                for parameter in model.parameters():
                    # The library's 0.02 makes all states nearly equal in so narrow a model; zeros give no gradients.
                    if parameter.ndim > 1:
                        parameter.normal_(std=0.1)
            model.save_pretrained(made[name])
            tiny_tokenizer(name).save_pretrained(made[name])
        return made[name]

    return folder


@pytest.fixture(scope="session")
def vision_folder(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The folder of a tiny vision encoder."""

    def folder(name: str) -> Path:
        torch.manual_seed(0)
        path = tmp_path_factory.mktemp(name)
        if name == "dinov2":
            tf.Dinov2Model(tf.Dinov2Config(**VIT)).save_pretrained(path)
        elif name == "dinov2_with_registers":
            tf.Dinov2WithRegistersModel(tf.Dinov2WithRegistersConfig(**VIT)).save_pretrained(path)
        else:
            TINY_FAMILIES[name].build().save_pretrained(path)
        return path

    return folder


@pytest.fixture(scope="session")
def encoders(folders: Folders) -> Callable[[str], LVLMEncoder]:
    """A family's encoder, loaded once; tests must not change it."""
    made: dict[str, LVLMEncoder] = {}

    def encoder(name: str) -> LVLMEncoder:
        if name not in made:
            made[name] = load(folders(name), with_vision=name in SEEING)
        return made[name]

    return encoder


def load(path: Path, with_vision: bool, **more: Any) -> LVLMEncoder:
    options = LVLMOptions(path=str(path), vision_pixels=32, **more)
    return LVLMEncoder(*load_lvlm(options, with_vision), options).eval()


def test_every_family_is_tested_here() -> None:
    records = {name if family.record == "" else family.record for name, family in TINY_FAMILIES.items()}
    assert records - {None} == set(FAMILIES)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_states_of_a_prompt_do_not_depend_on_its_batch(name: str, encoders: Callable[[str], LVLMEncoder]) -> None:
    encoder = encoders(name)

    together = encoder(PROMPTS)

    assert together.tokens.shape[2] == encoder.width == 32
    assert together.mask.sum(dim=1).unique().numel() == 3  # they are of different lengths
    for row, prompt in enumerate(PROMPTS):
        alone = encoder([prompt])
        length, phrases = int(alone.mask.sum()), len(prompt.phrases)
        assert together.mask[row].sum() == length
        assert together.local_mask[row].sum() == phrases
        for whole, part in (
            (together.tokens[row, :length], alone.tokens[0, :length]),
            (together.global_state[row], alone.global_state[0]),
            (together.local_states[row, :phrases], alone.local_states[0, :phrases]),
        ):
            torch.testing.assert_close(whole, part, atol=1e-4, rtol=1e-4)
    assert (together.global_state[0] - together.global_state[1]).abs().max() > 1e-2  # and they differ


@pytest.mark.parametrize("name", SEEING)
def test_image_embeddings_do_not_depend_on_their_batch(name: str, encoders: Callable[[str], LVLMEncoder]) -> None:
    encoder = encoders(name)
    torch.manual_seed(1)
    pixels = torch.rand(3, 3, 40, 40) * 2 - 1  # not the tower's own size: scaled
    pixels[1] = 0  # a uniform image must not be taken for padding
    pixels.requires_grad_()

    v = encoder.image_embeddings(pixels)

    assert v.shape == (3, encoder.image_width)
    assert v.isfinite().all()
    torch.testing.assert_close(v[2:], encoder.image_embeddings(pixels[2:]), atol=1e-4, rtol=1e-4)
    assert (v[0] - v[1]).abs().max() > 1e-4
    if TINY_FAMILIES[name].seen_with_gradients:
        (gradient,) = torch.autograd.grad(v[0].square().sum(), pixels)
        assert gradient[0].abs().max() > 0
        assert gradient[1:].abs().max() == 0


@pytest.mark.parametrize("name", SEEING)
@torch.no_grad()
def test_a_patch_of_the_grid_is_at_its_place_in_the_image(name: str, encoders: Callable[[str], LVLMEncoder]) -> None:
    encoder = encoders(name)
    torch.manual_seed(1)
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    features = encoder.image_features(pixels)
    if not TINY_FAMILIES[name].grid:
        with pytest.raises(UserError, match=rf"tower of this {name} model gives no grid of patches; choose one that"):
            encoder.patch_grid(features)
        return
    before = encoder.patch_grid(features)
    side = before.shape[1]
    pixels[..., -32 // side :, : 32 // side] *= -1  # the patch at the lower left

    changed = (encoder.patch_grid(encoder.image_features(pixels)) - before).norm(dim=-1)[0]

    assert divmod(int(changed.argmax()), side) == (side - 1, 0)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_adapters_and_nothing_frozen(name: str, encoders: Callable[[str], LVLMEncoder]) -> None:
    encoder = copy.deepcopy(encoders(name))
    targets = TINY_FAMILIES[name].targets
    encoder.model = add_adapter(encoder.model, LoraOptions(rank=2), targets, "base", allowed=encoder.text_modules())
    before = {key: parameter.detach().clone() for key, parameter in encoder.named_parameters()}
    trained = {key: p for key, p in encoder.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in key for key in trained)
    optimizer = torch.optim.SGD(trained.values(), lr=1.0)
    for _ in range(2):  # A has a gradient once B is not zero
        optimizer.zero_grad()
        states = encoder(PROMPTS)
        (states.global_state.square().sum() + states.tokens.pow(3).sum()).backward()
        optimizer.step()

    for key, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == (key in trained), key
        assert torch.equal(parameter, before[key]) != (key in trained), key


@pytest.mark.parametrize("name", NAMES)
def test_parameters_used_are_those_with_gradients(name: str, encoders: Callable[[str], LVLMEncoder]) -> None:
    encoder = copy.deepcopy(encoders(name))
    wanted = {key: parameter.requires_grad for key, parameter in encoder.named_parameters()}
    for with_images in (False, True) if name in SEEING else (False,):
        read = encoder.parameters_used(with_images)

        assert {key: parameter.requires_grad for key, parameter in encoder.named_parameters()} == wanted
        encoder.zero_grad()
        outputs = encoder(PROMPTS).tokens.square().sum()
        if with_images:
            outputs = outputs + encoder.image_embeddings(torch.rand(2, 3, 32, 32)).square().sum()
        outputs.backward()
        assert {key for key, parameter in encoder.named_parameters() if parameter.grad is not None} == read


@pytest.mark.parametrize("name", SEEING)
@torch.no_grad()
def test_without_v_the_vision_tower_is_not_loaded(
    name: str, folders: Folders, encoders: Callable[[str], LVLMEncoder], tmp_path: Path
) -> None:
    whole = encoders(name)
    for path in folders(name).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    parts = FAMILIES[whole.info.family].vision
    on_disk = TINY_FAMILIES[name].tower_on_disk or parts
    kept = {key: value for key, value in weights.items() if not key.startswith(on_disk)}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})  # loading the tower would fail

    encoder = load(tmp_path, with_vision=False)

    loaded = sum(parameter.numel() for parameter in encoder.parameters())
    assert loaded < sum(parameter.numel() for parameter in whole.parameters())
    assert {key.split(".")[1] for key, _ in encoder.named_parameters()}.isdisjoint(parts)
    torch.testing.assert_close(encoder(PROMPTS).tokens, whole(PROMPTS).tokens)
    with pytest.raises(UserError, match="has no vision tower; name a vision encoder"):
        encoder.image_embeddings(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_layers_can_be_chosen_and_averaged(name: str, encoders: Callable[[str], LVLMEncoder]) -> None:
    encoder = encoders(name)

    def read(states: str) -> torch.Tensor:
        options = replace(encoder.options, states=states)
        return LVLMEncoder(encoder.model, encoder.tokenizer, options)(PROMPTS).tokens

    last, first, average = read("last"), read("layer:1"), read("normalised-average")
    layers = 2
    stacked = torch.stack([read(f"layer:{number}") for number in range(1, layers + 1)])
    spread = (stacked.var(dim=-1, keepdim=True, correction=0) + 1e-5).sqrt()
    normalised = (stacked - stacked.mean(dim=-1, keepdim=True)) / spread
    torch.testing.assert_close(average, normalised.mean(dim=0), atol=1e-4, rtol=1e-4)
    assert torch.equal(first, read(f"layer:{-layers}"))
    assert (first - last).abs().max() > 1e-3
    with pytest.raises(UserError, match=rf"layer:9 is none of the {layers} layers"):
        read("layer:9")


# --- separate vision encoders ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vision", ["clip", "siglip", "siglip2", "dinov2", "dinov2_with_registers"])
def test_a_separate_vision_encoder_gives_v_and_is_frozen(vision: str, folders: Folders, vision_folder: Folders) -> None:
    options = LVLMOptions(path=str(folders("t5")), vision_path=str(vision_folder(vision)), vision_pixels=32)
    encoder = LVLMEncoder(*load_lvlm(options), options, load_vision_encoder(options)).eval()
    pixels = torch.rand(2, 3, 24, 24) * 2 - 1
    pixels.requires_grad_()

    v = encoder.image_embeddings(pixels)

    assert v.shape == (2, encoder.image_width) == (2, 24 if vision == "clip" else 32)
    (gradient,) = torch.autograd.grad(v[0].square().sum(), pixels)
    assert gradient[0].abs().max() > 0
    assert gradient[1].abs().max() == 0
    assert encoder.vision is not None
    assert not any(parameter.requires_grad for parameter in encoder.vision.parameters())
    assert not any("text" in name for name, _ in encoder.vision.named_parameters())  # not used


def test_with_a_separate_vision_encoder_the_lvlm_s_tower_is_not_loaded(
    folders: Folders, vision_folder: Folders
) -> None:
    options = LVLMOptions(path=str(folders("llava")), vision_path=str(vision_folder("siglip")))
    model, _ = load_lvlm(options)
    assert type(model).__name__ == "LlamaModel"


def test_a_vision_path_of_another_kind_is_refused(folders: Folders) -> None:
    with pytest.raises(UserError, match=r"lvlm\.vision_path: .* is a t5 model; supported: clip, .*dinov2"):
        load_vision_encoder(LVLMOptions(vision_path=str(folders("t5"))))


@pytest.mark.parametrize("name", ["t5", "fuyu", "qwen2"])
def test_a_family_without_a_vision_tower_is_refused_with_a_remedy(name: str, folders: Folders) -> None:
    with pytest.raises(UserError, match=rf"is a {name} model without a vision tower; .*lvlm\.vision_path"):
        load_lvlm(LVLMOptions(path=str(folders(name))))


# --- image normalisation -------------------------------------------------------------------


@torch.no_grad()
def test_images_are_normalised_by_the_folder_s_processor_config(folders: Folders, tmp_path: Path) -> None:
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    for path in folders("clip").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 0.125]
    for name, wrap in (("preprocessor_config.json", False), ("processor_config.json", True)):
        stored = {"image_mean": mean, "image_std": std}
        (tmp_path / name).write_text(json.dumps({"image_processor": stored} if wrap else stored))
        encoder = load(tmp_path, with_vision=True)
        (tmp_path / name).unlink()

        normal = ((pixels + 1) / 2 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        expected = encoder.model.get_image_features(pixel_values=normal).pooler_output
        torch.testing.assert_close(encoder.image_embeddings(pixels), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_without_a_processor_config_the_family_s_normalisation_is_used(folders: Folders) -> None:
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    info = load(folders("qwen2_vl"), with_vision=True).info
    assert (list(info.mean), list(info.std)) == (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)


@pytest.mark.parametrize("side", [32, 48])  # one window an image; windows that are shorter at the border
def test_one_call_of_attention_for_all_images_changes_nothing(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    encoder = load(folders("qwen2_5_vl"), with_vision=True)
    encoder.options = dataclasses.replace(encoder.options, vision_pixels=side)
    visual = encoder.model.visual
    pixels = (torch.rand(3, 3, side, side) * 2 - 1).requires_grad_()

    def measured(attention: str) -> tuple[torch.Tensor, torch.Tensor]:
        monkeypatch.setattr("vlad.models.text_encoder.vision_tower.EQUAL_IMAGES", attention)
        visual.config._attn_implementation = attention
        features = encoder.image_features(pixels)
        (gradient,) = torch.autograd.grad(features.square().sum(), pixels)
        return features, gradient

    torch.testing.assert_close(measured(EQUAL_IMAGES), measured("sdpa"))


# --- saving and loading -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["siglip", "paligemma", "kosmos-2", "blip-2", "mllama"])
@torch.no_grad()
def test_a_text_tower_saved_alone_gives_the_same_states(name: str, folders: Folders, tmp_path: Path) -> None:
    encoder = load(folders(name), with_vision=False)
    encoder.model.save_pretrained(tmp_path)

    # As a pipeline loads it: by its class, without load_lvlm.
    model = getattr(tf, type(encoder.model).__name__).from_pretrained(tmp_path)
    again = LVLMEncoder(model, encoder.tokenizer, encoder.options).eval()

    assert again.family == encoder.family
    assert torch.equal(again(PROMPTS).tokens, encoder(PROMPTS).tokens)


@torch.no_grad()
def test_siglip_prompts_are_padded_to_the_full_length(folders: Folders) -> None:
    encoder = load(folders("siglip"), with_vision=True)
    ids = encoder.tokenizer(PROMPTS[0].text)["input_ids"]
    filled = torch.tensor([ids + [0] * (64 - len(ids))])

    expected = encoder.model.text_model(input_ids=filled).last_hidden_state

    torch.testing.assert_close(encoder(PROMPTS[:1]).tokens, expected)
    assert encoder(PROMPTS[:1]).mask.sum() == len(ids)


@torch.no_grad()
def test_paligemma_attends_to_a_prompt_in_both_directions(folders: Folders) -> None:
    encoder = load(folders("paligemma"), with_vision=True)
    first = [encoder([parse_prompt(text)]).tokens[0, 0] for text in ("a sign on top", "a sign on wood")]
    assert (first[0] - first[1]).abs().max() > 1e-3


# --- refusals ------------------------------------------------------------------------------------------------------


def test_missing_weights_are_refused(folders: Folders, tmp_path: Path) -> None:
    for path in folders("llava").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights = {key: value for key, value in weights.items() if not key.endswith("layers.1.mlp.up_proj.weight")}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(UserError, match=r"1 tensor differs: .*layers\.1\.mlp\.up_proj\.weight missing"):
        load_lvlm(LVLMOptions(path=str(tmp_path)))


def test_a_blip2_without_text_in_its_q_former_is_refused(folders: Folders, tmp_path: Path) -> None:
    config = json.loads((folders("blip-2") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["Blip2ForConditionalGeneration"]}))
    with pytest.raises(
        UserError, match="encoded by the Q-Former of a blip-2 model, and Blip2ForConditionalGeneration has"
    ):
        load_lvlm(LVLMOptions(path=str(tmp_path)))
