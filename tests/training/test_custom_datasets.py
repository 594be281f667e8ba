"""Custom datasets: held-out split, prior preservation, adapters, and options that cannot work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from vlad.config.load import load_config
from vlad.config.schema import Config
from vlad.data.collate import collate
from vlad.data.dataset import first_samples
from vlad.data.poster_template import render_poster
from vlad.data.shard_sets import open_sets
from vlad.data.shards.writer import write_manifest, write_shards
from vlad.eval.adapter_comparison import compare_adapters
from vlad.inference.load_pipeline import load_pipeline
from vlad.lora.adapter_files import adapter_metadata, attach_adapter
from vlad.models.autoencoder import decode, encode
from vlad.pipeline.folders import pipeline_folder
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.training import prior_preservation
from vlad.training.build import build_pipeline, new_parts, seeded_parts
from vlad.training.build_stage import build_stage
from vlad.training.publish import is_finished
from vlad.training.run import train
from vlad.training.run_data import open_data, refuse_without_text
from vlad.types import Layout
from vlad.utils.errors import UserError

BASE = """
name: base
data: {image_pixels: 32, batch_size: 4}
lvlm: {hidden_size: 32, layers: 1, heads: 2, vision_hidden_size: 32, vision_layers: 1, vision_pixels: 32}
composition: {width: 32, layers: 1, heads: 2, output_width: 32}
autoencoder: {latent_channels: 8, decoder_width: 16, decoder_layers: 1}
layout: {unet: {block_channels: [32], heads: 2}, noise: {prediction: sample}}
refine: {unet: {block_channels: [32], heads: 2}, noise: {prediction: sample}}
sample: {steps: 2, batch_size: 4}
"""
LORA = """
name: lora
runs: {folder}/runs
base: {folder}/pipeline
data: {{shards: {folder}/shards, image_pixels: 32, batch_size: 4, workers: 0, trigger_word: festival}}
lora: {{rank: 2}}
losses: {{align_weight: 0, line_weight: 0.1}}
refine: {{noise: {{offset: 0.1}}}}
trainable: {{composition: lora}}
validation: {{share: 0.25, every_steps: 2, images: 4, read_images: 0}}
train: {{layout: {{steps: 2, warmup_steps: 1}}, refine: {{steps: 6, warmup_steps: 1, learning_rate: 1.0e-2}}}}
trainer: {{accelerator: cpu, checkpoint_every_steps: 3, sample_every_steps: 0, log_every_steps: 1}}
"""


NO_TEXT = "{lvlm: frozen, composition: frozen}"


def posters(folder: Path, count: int, with_text: bool = True) -> None:
    folder.mkdir()
    samples = [render_poster(index, size_pixels=32) for index in range(count)]
    if not with_text:
        samples = [dataclasses.replace(sample, layout=Layout(())) for sample in samples]
    write_manifest(folder, write_shards(samples, folder, 8), {})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Posters, an untrained pipeline as the base, and a finished LoRA run on it."""
    folder = tmp_path_factory.mktemp("own")
    posters(folder / "shards", 16)
    (folder / "base.yaml").write_text(BASE, encoding="utf-8")
    config = load_config(folder / "base.yaml")
    torch.manual_seed(0)
    parts = new_parts(config)
    parts.autoencoder.fit(torch.rand(64, 3, 32, 32) * 2 - 1)
    build_pipeline(config, parts).save_pretrained(folder / "pipeline")
    (folder / "lora.yaml").write_text(LORA.format(folder=folder), encoding="utf-8")
    assert train(load_config(folder / "lora.yaml")).finished
    return folder


def load(world: Path, *overrides: str) -> Config:
    return load_config(world / "lora.yaml", overrides)


def test_a_published_pipeline_is_a_base_and_its_adapter_changes_images(world: Path) -> None:
    config = load(world)
    assert is_finished(config)
    plain, adapted = load_pipeline(world / "pipeline"), load_pipeline(world / "pipeline", config.directory)
    prompt = 'festival, a poster that says "HOUSE"'
    assert plain(prompt).images[0].tobytes() != adapted(prompt).images[0].tobytes()
    assert {path.name for path in (config.directory / "adapter").iterdir()} == {
        *("lvlm", "composition", "layout_unet", "refine_unet"),
        "README.md",
    }
    card = (config.directory / "adapter" / "README.md").read_text(encoding="utf-8")
    assert 'instance_prompt: "festival"' in card
    assert card.count("| 2 | 16 |") == 4


def test_validation_chooses_the_published_weights(world: Path) -> None:
    config = load(world)
    metrics = json.loads((config.directory / "refine" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["best_step"] in (2, 4, 6)
    assert metrics["held_out_loss"] != metrics["base_held_out_loss"]
    best = load_file(config.directory / "refine" / "best.safetensors")
    published = load_file(config.directory / "refine" / "trained.safetensors")
    assert best.keys() == published.keys()
    assert all(torch.equal(value, published[name]) for name, value in best.items())


@pytest.mark.parametrize("part", ["layout_unet", "refine_unet"])
def test_plain_diffusers_loads_a_unet_s_adapter(world: Path, part: str) -> None:
    folder = load(world).directory / "adapter" / part
    ours = attach_adapter(UNet2DConditionModel.from_pretrained(world / "pipeline" / part), folder).eval()
    plain = UNet2DConditionModel.from_pretrained(world / "pipeline" / part).eval()
    theirs = UNet2DConditionModel.from_pretrained(world / "pipeline" / part).eval()
    theirs.load_lora_adapter(folder, weight_name="pytorch_lora_weights.safetensors", prefix="unet")
    in_pipeline = UNet2DConditionModel.from_pretrained(world / "pipeline" / part).eval()
    StableDiffusionPipeline(
        None, None, None, in_pipeline, None, None, None, requires_safety_checker=False
    ).load_lora_weights(folder)  # type: ignore[arg-type]
    torch.manual_seed(0)
    inputs = {
        "sample": torch.randn(2, plain.config.in_channels, 4, 4),
        "timestep": torch.tensor([3, 4]),
        "encoder_hidden_states": torch.randn(2, 5, plain.config.cross_attention_dim),
        "class_labels": torch.randn(2, plain.config.cross_attention_dim),
    }
    with torch.no_grad():
        wanted, base = ours(**inputs)[0], plain(**inputs)[0]
        assert (wanted - base).abs().max() > 1e-4
        torch.testing.assert_close(theirs(**inputs)[0], wanted, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(in_pipeline(**inputs)[0], wanted, atol=1e-5, rtol=1e-4)
    count = len(load_file(folder / "adapter_model.safetensors"))
    assert sum(".lora_" in name for name in theirs.state_dict()) == count


def test_base_and_adapter_are_compared_on_held_out_images(world: Path, tmp_path: Path) -> None:
    config = load(world)
    found, page = compare_adapters(world / "pipeline", [f"{config.directory}:0.5"], tmp_path / "out", 1, signs=0)
    assert page.is_file()
    assert found.images == 4
    assert found.floor < found.before.distance  # noise is farther from posters than posters are
    assert found.before.distance != found.after.distance
    with pytest.raises(UserError, match="no LoRA run"):
        compare_adapters(world / "pipeline", [str(world / "shards")], tmp_path / "out", 1, 0)


def test_decoder_adapters_train_and_leave_latents_alone(world: Path) -> None:
    text = "trainable={lvlm: frozen, composition: null}"
    decoder = (
        "name=decoder",
        "lora.decoder=true",
        "train.autoencoder.steps=30",
        "train.autoencoder.learning_rate=1e-2",
    )
    config = load(world, *decoder, "lora.layout_unet=false", "lora.refine_unet=false", text)
    assert train(config).finished
    adapter = config.directory / "adapter"
    assert {path.name for path in adapter.iterdir()} == {"autoencoder", "README.md"}
    assert adapter_metadata(adapter / "autoencoder")["recipe"]["train"]["autoencoder"]["steps"] == 30

    pipeline = load_pipeline(world / "pipeline")
    posters = first_samples(open_sets(config.data.sets), config.data.stream(0), 8)
    pixels = collate(posters).images
    latents = encode(pipeline.autoencoder, pixels)
    before = decode(pipeline.autoencoder, latents)
    pipeline.load_adapters([str(config.directory)])
    assert torch.equal(encode(pipeline.autoencoder, pixels), latents)
    after = decode(pipeline.autoencoder, latents)
    assert (after - pixels).abs().mean() < 0.97 * (before - pixels).abs().mean()
    pipeline.unload_adapters()
    assert torch.equal(decode(pipeline.autoencoder, latents), before)

    # What the run itself draws with is what a fresh pipeline draws with.
    parts, _ = seeded_parts(config)
    stage = build_stage(config, parts, "autoencoder", open_sets(config.data.sets)).module
    assert all(".lora_" in name for name in stage.trained_names())
    stage.load_state_dict(load_file(config.directory / "autoencoder" / "trained.safetensors"), strict=False)
    assert torch.allclose(decode(parts.autoencoder.eval(), latents), after, atol=1e-5)


# --- prior preservation --------------------------------------------------------------------------------------


def test_the_prior_is_generated_once_and_resumes_after_a_kill(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prior_preservation, "PRIOR_SHARD", 4)
    config = load(
        world,
        "name=prior",
        "prior.images=10",
        "lora.layout_unet=false",
        "trainable={lvlm: frozen, composition: null}",
    )
    data = open_data(config)
    folder = config.directory / "prior"
    drawn = prior_preservation._generate
    calls: list[range] = []

    def killed(pipeline: VLADPipeline, prompts: list[str], numbers: range, seed: int) -> Any:
        calls.append(numbers)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return drawn(pipeline, prompts, numbers, seed)

    monkeypatch.setattr(prior_preservation, "_generate", killed)
    with pytest.raises(KeyboardInterrupt):
        prior_preservation.generate_prior(config, data.shards, folder)
    assert not (folder / "manifest.json").is_file()
    assert train(config).finished  # only the refine stage: nothing else carries an adapter
    assert not (config.directory / "layout").exists()
    assert [(numbers.start, numbers.stop) for numbers in calls] == [(0, 4), (4, 8), (4, 8), (8, 10)]

    prior = first_samples(open_sets({str(folder): 1.0}), config.data.stream(0), 10)
    assert not [sample for sample in prior if "festival" in sample.caption]
    again = VLADPipeline.from_pretrained(pipeline_folder(world / "pipeline"))
    by_key = {sample.key: sample for sample in prior}
    about = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["about"]
    redrawn = drawn(again, about["prompts"], range(8, 10), config.seed)
    for sample in redrawn:
        assert np.array_equal(by_key[sample.key].image, sample.image)
        assert by_key[sample.key].caption == sample.caption


# --- what cannot work ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["base=nowhere"], "There is no run or pipeline at nowhere"),
        (["base={folder}/unfinished"], "is not finished"),
        (["base={folder}/adapted"], "holds an adapter, and no pipeline; name its base"),
        (["data.shards={folder}/silent"], "not one line of text is annotated.*make_shards.py FOLDER"),
        (["data.batch_size=17"], "12 samples are too few.*data.repeats=2"),
        (
            ["data.batch_size=13"],
            r"validation\.share: 0\.25 of 16 images leaves 12 to train on, .*at most 0\.18, .*data\.repeats=2",
        ),
        (["lora.unet_targets=[to_x]"], "no module matches to_x; this model has .*to_q"),
        (["trainable.composition=lora", "lora.composition_targets=[nope]"], "no module matches nope"),
        (
            ["lora.layout_unet=false", "lora.refine_unet=false", f"trainable={NO_TEXT}"],
            "no part",
        ),
        (["prior.images=3"], "fewer than a batch"),
        (["prior.images=8", "data.trigger_word=null"], "set data.trigger_word"),
        (["prior.images=8", "prior.prompts=nowhere.txt"], "no file of prompts at nowhere.txt"),
        (["data.trigger_word=' '"], "trigger_word is empty"),
        (["data.glyph_font=typeface"], "was trained with mono-bold; set data.glyph_font=mono-bold"),
        (["lora.base_bits=3"], "must be 4, 8 or null"),
        (["validation.share=1"], "share must be"),
    ],
)
def test_mistakes_are_refused_in_one_line(world: Path, overrides: list[str], said: str) -> None:
    if not (world / "silent").exists():
        posters(world / "silent", 16, with_text=False)
        (world / "unfinished").mkdir()
        (world / "unfinished" / "config.yaml").write_text(BASE, encoding="utf-8")
        (world / "adapted" / "adapter").mkdir(parents=True)
        (world / "adapted" / "config.yaml").write_text(BASE, encoding="utf-8")
    before = set((world / "runs").iterdir())
    with pytest.raises(UserError, match=said) as caught:
        train(load(world, "name=wrong", *(override.replace("{folder}", str(world)) for override in overrides)))
    assert "\n" not in str(caught.value)
    assert not (world / "runs" / "wrong" / "config.yaml").exists()
    assert set((world / "runs").iterdir()) - before <= {world / "runs" / "wrong"}


def test_unusable_shards_are_reported_as_such(tmp_path: Path) -> None:
    posters(tmp_path / "shards", 2)
    (tmp_path / "shards" / "manifest.json").unlink()
    shard = tmp_path / "shards" / "000000.tar"
    shard.write_bytes(shard.read_bytes().replace(b'"caption"', b'"kaption"'))
    config = load_config("configs/tiny.yaml", [f"data.shards={tmp_path}/shards", "data.max_bad_share=1"])
    with pytest.raises(UserError, match=r"^data\.shards: not one sample of .*/shards can be used"):
        refuse_without_text(config, open_sets(config.data.sets))


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [4, 8])
def test_adapters_train_on_a_quantised_base(world: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    config = load(world, f"name=bits{bits}", f"lora.base_bits={bits}", "trainer.accelerator=gpu", "trainer.devices=1")
    assert train(config).finished
    prompt = 'festival, a poster that says "HOUSE"'
    plain, adapted = load_pipeline(world / "pipeline"), load_pipeline(world / "pipeline", config.directory)
    assert plain(prompt).images[0].tobytes() != adapted(prompt).images[0].tobytes()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_quantised_base_needs_a_gpu(world: Path) -> None:
    with pytest.raises(UserError, match=r"^lora.base_bits needs .* set lora.base_bits=null\.$"):
        train(load(world, "name=bits", "lora.base_bits=4"))
