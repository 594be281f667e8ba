"""Runs on a pretrained LVLM: adapted, with v from its own tower, from another encoder, or without v."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

from vlad.config.load import load_config
from vlad.data.options import SyntheticOptions
from vlad.data.shards.writer import write_manifest, write_shards
from vlad.data.signs import render_sign
from vlad.inference.load_pipeline import load_pipeline
from vlad.models.options import LVLMOptions
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.models.text_encoder.tiny_qwen import build_byte_tokenizer, build_tiny_qwen
from vlad.training.run import train

PROMPT = 'a blue sign that says "HOUSE" at the top'
CONFIG = """
name: adapted
runs: {folder}/runs
data: {{shards: {folder}/shards, image_pixels: 32, batch_size: 4, workers: 1, shuffle_window: 8}}
lvlm: {{path: {folder}/qwen, vision_pixels: 32}}
trainable: {{lvlm: lora}}
lora: {{rank: 2}}
composition: {{width: 32, layers: 1, heads: 2, output_width: 32}}
autoencoder: {{latent_channels: 8, decoder_width: 16, decoder_layers: 1}}
layout: {{unet: {{block_channels: [32], heads: 2}}, noise: {{prediction: sample}}}}
refine: {{unet: {{block_channels: [32], heads: 2}}, noise: {{prediction: sample}}}}
train:
  autoencoder: {{steps: 1, warmup_steps: 1}}
  layout: {{steps: 2, warmup_steps: 1, learning_rate: 1.0e-2}}
  refine: {{steps: 1, warmup_steps: 1}}
trainer: {{checkpoint_every_steps: 9, sample_every_steps: 0, accelerator: cpu, log_every_steps: 1}}
sample: {{steps: 2, batch_size: 1}}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards, a tiny Qwen2.5-VL in half precision, a tiny DINOv2, and a config."""
    folder = tmp_path_factory.mktemp("lvlm")
    signs = SyntheticOptions(size_pixels=32, count=16)
    (folder / "shards").mkdir()
    entries = write_shards((render_sign(signs, i) for i in range(signs.count)), folder / "shards", 8)
    write_manifest(folder / "shards", entries, {})
    torch.manual_seed(0)
    sizes = LVLMOptions(hidden_size=32, layers=2, heads=2, vision_hidden_size=32, vision_layers=1, vision_pixels=32)
    build_tiny_qwen(sizes).to(torch.bfloat16).save_pretrained(folder / "qwen")
    build_byte_tokenizer().save_pretrained(folder / "qwen")
    vision = {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    Dinov2Model(Dinov2Config(hidden_size=16, **vision)).save_pretrained(folder / "dinov2")
    (folder / "adapted.yaml").write_text(CONFIG.format(folder=folder), encoding="utf-8")
    return folder


def test_an_adapted_lvlm_is_trained_and_published_merged(world: Path) -> None:
    config = load_config(world / "adapted.yaml")
    assert train(config).finished

    trained = load_file(config.directory / "layout" / "trained.safetensors")
    of_lvlm = {name: value for name, value in trained.items() if name.startswith("text_side.lvlm.")}
    assert of_lvlm
    assert all(".lora_" in name and ".language_model." in name for name in of_lvlm)
    assert all(value.any() for name, value in of_lvlm.items() if "lora_B" in name)
    pipeline = load_pipeline(config.directory)
    plain = load_file(world / "qwen" / "model.safetensors")
    name = "language_model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(pipeline.lvlm.state_dict()[name], plain[name])  # what was trained is in it
    assert pipeline(PROMPT, 3).images[0].size == (32, 32)


@pytest.mark.parametrize("changes", [{"losses.align_weight": 0}, {"lvlm.vision_path": "{folder}/dinov2"}])
def test_without_l_align_only_the_text_path_is_trained_and_published(world: Path, changes: dict[str, object]) -> None:
    name = "-".join(changes)
    overrides = [f"{key}={str(value).format(folder=world)}" for key, value in changes.items()]
    config = replace(load_config(world / "adapted.yaml", [*overrides, "lvlm.states=normalised-average"]), name=name)
    assert train(config).finished

    pipeline = load_pipeline(config.directory)
    assert type(pipeline.lvlm).__name__ == "Qwen2_5_VLTextModel"
    assert pipeline.text_side.lvlm.options.states == "normalised-average"
    assert pipeline.text_side([parse_prompt(PROMPT)]).tokens.isfinite().all()
