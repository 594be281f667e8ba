"""A run from Stable Diffusion, end to end: both stages, its checkpoints, its pipeline, adapters on it; wrong inputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vlad.config.load import load_config
from vlad.data.options import SyntheticOptions
from vlad.data.shards.writer import write_manifest, write_shards
from vlad.data.signs import render_sign
from vlad.inference.load_pipeline import load_pipeline
from vlad.models.options import LVLMOptions
from vlad.models.text_encoder.tiny_qwen import build_tiny_qwen
from vlad.profiling.stand_in import StandInOptions, save_stand_in
from vlad.training.publish import is_finished
from vlad.training.run import train
from vlad.utils.errors import UserError

PROMPT = 'a blue sign that says "HOUSE" at the top'
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards of 8 signs and a stand-in of each kind."""
    folder = tmp_path_factory.mktemp("world")
    options = SyntheticOptions(size_pixels=64, count=8)
    (folder / "shards").mkdir()
    entries = write_shards((render_sign(options, i) for i in range(options.count)), folder / "shards", 8)
    write_manifest(folder / "shards", entries, {})
    for kind in ("sd15", "sdxl"):
        save_stand_in(kind, folder / kind)  # type: ignore[arg-type]
    return folder


def tiny_lvlm(folder: Path) -> Path:
    """A tiny LVLM on disk, of another width than the runs'."""
    build_tiny_qwen(LVLMOptions(hidden_size=24, layers=1, heads=1)).save_pretrained(folder)
    return folder


def overrides(world: Path, kind: str, *more: str) -> list[str]:
    """What makes a config for GPUs small enough for here."""
    return [
        f"stable_diffusion.path={world / kind}",
        *("stable_diffusion.variant=null", "lora=null"),
        f"runs={world / 'runs'}",
        f"name={kind}",
        f"data.shards={world / 'shards'}",
        *("data.image_pixels=64", "data.batch_size=2", "data.workers=0", "data.shuffle_window=8"),
        *("lvlm.path=null", "lvlm.hidden_size=32", "lvlm.layers=1", "lvlm.heads=2", "lvlm.vision_hidden_size=32"),
        *("composition.width=32", "composition.layers=1", "composition.heads=2", "composition.output_width=32"),
        *("train.layout.steps=2", "train.refine.steps=2", "trainer.accelerator=cpu", "trainer.precision=32-true"),
        *("train.layout.accumulate_batches=1", "train.refine.accumulate_batches=1"),
        *("trainer.sample_every_steps=0", "trainer.checkpoint_every_steps=1", "sample.steps=2", "sample.batch_size=1"),
        *more,
    ]


@pytest.fixture(scope="module")
def finished(world: Path) -> Path:
    """A finished run from Stable Diffusion 1.5."""
    config = load_config(CONFIGS / "sd15.yaml", overrides(world, "sd15", "trainer.sample_every_steps=2"))
    assert train(config).finished and is_finished(config)
    return config.directory


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_run_from_stable_diffusion_trains_both_stages(world: Path, finished: Path, kind: str) -> None:
    directory = world / "runs" / kind
    if directory != finished:
        config = load_config(CONFIGS / f"{kind}.yaml", overrides(world, kind, "trainer.sample_every_steps=2"))
        assert train(config).finished and is_finished(config)
    for stage, channels in (("layout", 4), ("refine", 8)):
        assert json.loads((directory / stage / "metrics.json").read_text(encoding="utf-8"))["diffusion"] > 0
        trained = load_file(directory / stage / "trained.safetensors")
        assert not [name for name in trained if ".base_encoders." in name or name.startswith("autoencoder.")]
        assert trained["unet.conv_in.weight"].shape[1] == channels
        assert trained["unet.class_embedding.linear_2.weight"].abs().max() > 0
    assert (directory / "samples" / "refine").is_dir()
    pipeline = load_pipeline(directory)
    first = pipeline(PROMPT, 1)
    moved = directory.rename(world / f"{kind}-moved")  # everything is in the run
    again = load_pipeline(moved)(PROMPT, 1)
    moved.rename(directory)
    assert np.array_equal(first.images[0], again.images[0])
    assert first.layouts[0].lines[0].text == "HOUSE"


def test_a_stopped_run_resumes_and_can_be_sampled(world: Path, finished: Path) -> None:
    stopped = Path(shutil.copytree(finished, world / "runs" / "stopped"))
    shutil.rmtree(stopped / "refine")
    shutil.rmtree(stopped / "pipeline")
    config = load_config(CONFIGS / "sd15.yaml", overrides(world, "sd15", "name=stopped"))
    with pytest.raises(UserError, match="has saved nothing yet"):
        load_pipeline(stopped)

    assert train(config).finished
    once, again = (load_file(path / "refine" / "trained.safetensors") for path in (finished, stopped))
    assert once.keys() == again.keys() and all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.parametrize("own_text", ["true", "false"])
def test_adapters_on_stable_diffusion_train_added_inputs_in_full(world: Path, own_text: str) -> None:
    more = ["lora.rank=2", f"stable_diffusion.own_text={own_text}", "trainer.sample_every_steps=2"]
    config = load_config(CONFIGS / "sd15.yaml", overrides(world, "sd15", *more, f"name=adapted-{own_text}"))
    assert train(config).finished

    directory = config.directory
    trained = load_file(directory / "refine" / "trained.safetensors")
    grown = {name for name in trained if ".lora_" not in name}
    assert {name.split(".")[3] for name in grown} == {"conv_in", "class_embedding", "encoder_hid_proj"}
    assert len(trained) > len(grown)
    assert not (directory / "adapter").exists()  # the pipeline holds it all
    pipeline = load_pipeline(directory)
    assert not [name for name, _ in pipeline.refine_unet.named_parameters() if "lora" in name]
    assert (pipeline.own_text_encoder is not None) == (own_text == "true")
    assert pipeline(PROMPT, 1).images[0].size == (64, 64)


def test_a_finished_run_is_a_base_like_any_other(world: Path, finished: Path) -> None:
    base = finished
    own = ("stable_diffusion", "lvlm", "composition", "lora")  # what the base brings
    small = [entry for entry in overrides(world, "sd15") if not entry.startswith(own)]
    lora = load_config(CONFIGS / "lora.yaml", [*small, f"base={base}", "name=on-it"])
    assert train(lora).finished
    with pytest.raises(
        UserError, match=r"another LVLM than the one that the base was trained with .hidden_size 24, not"
    ):
        other = tiny_lvlm(world / "other")
        train(load_config(CONFIGS / "lora.yaml", [*small, f"base={base}", "name=of-another", f"lvlm.path={other}"]))
    spoilt = Path(shutil.copytree(base, world / "spoilt"))
    weights = spoilt / "pipeline" / "refine_unet" / "diffusion_pytorch_model.safetensors"
    cut = {name: value for name, value in load_file(weights).items() if name != "conv_out.bias"}
    save_file({**cut, "conv_in.weight": cut["conv_in.weight"][:, :4].contiguous()}, weights)
    with pytest.raises(UserError, match=r"2 tensors differ: conv_in.weight .*conv_out.bias missing"):
        train(load_config(CONFIGS / "lora.yaml", [*small, f"base={spoilt}", "name=of-spoilt"]))
    plain, adapted = load_pipeline(base), load_pipeline(base, lora.directory)
    assert not np.array_equal(plain(PROMPT, 1).images[0], adapted(PROMPT, 1).images[0])


def test_models_under_the_wrong_option_name_the_right_one(world: Path, tmp_path: Path) -> None:
    own = ("stable_diffusion", "lvlm", "composition", "lora")
    small = [entry for entry in overrides(world, "sd15") if not entry.startswith(own)]
    with pytest.raises(UserError, match=r"holds a StableDiffusionPipeline, .* as stable_diffusion\.path"):
        train(load_config(CONFIGS / "lora.yaml", [*small, f"base={world / 'sd15'}", "name=no-base"]))
    with pytest.raises(UserError, match="holds a StableDiffusionPipeline, not a VLADPipeline"):
        load_pipeline(world / "sd15")
    with pytest.raises(UserError, match="the base brings UNets of its own"):
        train(load_config(CONFIGS / "sd15.yaml", overrides(world, "sd15", f"base={world}", "name=two")))
    assert not (world / "runs" / "no-base" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (StandInOptions(autoencoder={"scaling_factor": 0.5}), "scaling_factor 0.5, not 0.18215"),
        (StandInOptions(latent_channels=6), "channels 6, not 4"),
        (StandInOptions(levels=3), "pixels per cell 4, not 8"),
        (StandInOptions(autoencoder={"shift_factor": 0.1}), "shift_factor 0.1, not 0.0"),
    ],
)
def test_an_autoencoder_of_other_latents_is_refused(
    world: Path, tmp_path: Path, options: StandInOptions, told: str
) -> None:
    save_stand_in("sd15", tmp_path / "other", options)
    more = ("name=other-vae", f"autoencoder.path={tmp_path / 'other' / 'vae'}")
    with pytest.raises(UserError, match=f"autoencoder.path: .*{told}"):
        train(load_config(CONFIGS / "sd15.yaml", overrides(world, "sd15", *more)))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["lora.rank=2", "lora.unet_targets=[to_q,of_another]"], "no module matches of_another; this model has"),
        (["lora.rank=2", "lora.unet_targets=[]"], "no module matches an empty list"),
        (["data.image_pixels=72"], "images of 72 pixels cannot be trained on"),
        (["data.batch_size=9"], "8 samples are too few"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused(world: Path, more: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        train(load_config(CONFIGS / "sd15.yaml", overrides(world, "sd15", "name=refused", *more)))
