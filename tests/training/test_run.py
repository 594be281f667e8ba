"""Whole runs on small shards: three stages, stop and resume, sampling, an adapter; and wrong inputs."""

from __future__ import annotations

import dataclasses
import errno
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from tool_fixtures import Call

from vlad.cli.evaluate import EVALUATE
from vlad.cli.sample import SAMPLE
from vlad.cli.train import CACHE, TRAIN
from vlad.cli.verb import Verb
from vlad.config.load import load_config
from vlad.config.schema import Config
from vlad.data.options import SyntheticOptions
from vlad.data.shards.writer import write_manifest, write_shards
from vlad.data.signs import render_sign
from vlad.inference.load_pipeline import load_pipeline
from vlad.layout.polygons import box_polygon
from vlad.lora.adapter_files import adapter_metadata
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.reports.curves import read_curves
from vlad.training.publish import is_finished
from vlad.training.run import train
from vlad.training.stages import contrast
from vlad.types import Layout, TextLine
from vlad.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PROMPT = 'a blue sign that says "HOUSE" at the top'


def config_text(folder: Path) -> str:
    return f"""
name: base
runs: {folder / "runs"}
data: {{shards: {folder / "shards"}, image_pixels: 32, batch_size: 4, workers: 1, shuffle_window: 8}}
lvlm: {{hidden_size: 32, layers: 1, heads: 2, vision_hidden_size: 32, vision_layers: 1, vision_pixels: 32}}
composition: {{width: 32, layers: 1, heads: 2, output_width: 32}}
autoencoder: {{latent_channels: 8, decoder_width: 16, decoder_layers: 1}}
layout: {{unet: {{block_channels: [32], heads: 2}}, noise: {{prediction: sample}}}}
refine: {{unet: {{block_channels: [32], heads: 2}}, noise: {{prediction: v_prediction}}}}
train:
  autoencoder: {{steps: 4, warmup_steps: 1}}
  layout: {{steps: 8, warmup_steps: 2, accumulate_batches: 2}}
  refine: {{steps: 4, warmup_steps: 1}}
trainer: {{checkpoint_every_steps: 3, sample_every_steps: 0, accelerator: cpu, log_every_steps: 1}}
sample: {{steps: 2, batch_size: 2}}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards of 32 signs, a config, and a finished run."""
    folder = tmp_path_factory.mktemp("world")
    options = SyntheticOptions(size_pixels=32, count=32)
    (folder / "shards").mkdir()
    entries = write_shards((render_sign(options, i) for i in range(options.count)), folder / "shards", 16)
    write_manifest(folder / "shards", entries, {})
    (folder / "base.yaml").write_text(config_text(folder), encoding="utf-8")
    # Its grids are read by OCR, which takes as long as the training; the other runs do without and learn the same.
    assert train(load_config(folder / "base.yaml", ["trainer.sample_every_steps=4"])).finished
    return folder


def trained(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "layout" / "trained.safetensors") | {
        f"refine.{name}": value for name, value in load_file(directory / "refine" / "trained.safetensors").items()
    }


def test_a_run_writes_the_documented_files(world: Path) -> None:
    directory = world / "runs" / "base"
    for stage in ("autoencoder", "layout", "refine"):
        metrics = json.loads((directory / stage / "metrics.json").read_text(encoding="utf-8"))
        assert metrics["images_per_second"] > 0
        assert 0 < metrics["saving_wait"] < 1
        assert list((directory / stage / "logs").glob("*/metrics.csv"))
        assert not (directory / stage / "checkpoints").exists()
    assert (directory / "samples" / "layout" / "step-00000008.png").is_file()
    for stage, steps in (("layout", [4, 8]), ("refine", [4])):
        for figure in ("grid_word_accuracy", "grid_letter_accuracy"):
            curve = read_curves(directory / stage)[figure]
            assert [step for step, _ in curve] == steps
            assert all(0 <= share <= 1 for _, share in curve)
    assert (directory / "pipeline" / "model_index.json").is_file()
    assert is_finished(load_config(directory / "config.yaml"))
    assert not list(directory.rglob("*.partial"))


def test_every_stage_trains_its_own_and_nothing_else(world: Path) -> None:
    layout = load_file(world / "runs" / "base" / "layout" / "trained.safetensors")
    refine = load_file(world / "runs" / "base" / "refine" / "trained.safetensors")
    assert {name.split(".")[0] for name in layout} == {"text_side", "alignment", "unet"}
    assert {name.split(".")[0] for name in refine} == {"unet"}


def test_contrast_is_the_distance_from_the_background() -> None:
    pixels = torch.full((2, 3, 8, 8), -0.5)
    pixels[1, :, 2:4, 2:5] = torch.tensor([1.0, 0.0, -0.5])[:, None, None]
    found = contrast(pixels)
    assert found.shape == (2, 1, 8, 8)
    assert found[0].abs().max() == 0
    assert (found[1] > 0).sum() == 6
    assert found[1].max() == pytest.approx((1.5 + 0.5 + 0.0) / 3)


def stop_at(config: Config, stage: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the config until `step` of `stage`, where a signal would have stopped it."""
    from vlad.training.callbacks.stop_on_signal import StopOnSignal

    original = StopOnSignal.on_train_batch_end

    def stop(self, trainer, module, *rest) -> None:  # type: ignore[no-untyped-def]
        here = type(module).__name__.lower().startswith(stage)
        self.stopped = self.stopped or (here and trainer.global_step >= step)
        original(self, trainer, module, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "on_train_batch_end", stop)
        assert not train(config).finished
    assert not is_finished(config)


@pytest.mark.parametrize(("stage", "step"), [("layout", 5), ("refine", 2)])
def test_an_unfinished_run_can_be_sampled(
    world: Path, stage: str, step: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(load_config(world / "base.yaml"), name=f"stopped-{stage}")
    stop_at(config, stage, step, monkeypatch)
    if stage == "layout":
        capsys.readouterr()
        with pytest.raises(UserError, match="its stage refine has saved nothing yet"):
            load_pipeline(config.directory)
        assert capsys.readouterr().err == ""  # nothing is said to be drawn with before it is refused
        return
    pipeline = load_pipeline(config.directory)
    newest = config.directory / "refine" / "checkpoints" / "step-00000002.ckpt"
    assert capsys.readouterr().err.endswith(f"{config.directory} is not finished; sampling from {newest}\n")
    assert pipeline(PROMPT).images[0].size == (32, 32)
    published = load_file(config.directory / "layout" / "trained.safetensors")
    assert torch.equal(pipeline.layout_unet.conv_in.weight, published["unet.conv_in.weight"])


def test_a_full_disk_and_a_damaged_checkpoint_change_no_result(
    world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(load_config(world / "base.yaml"), name="damaged")

    def full(_: object, path: Path) -> None:
        path.write_bytes(b"the beginning of a result")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(
            UserError, match=r"\[1/3 autoencoder\] no space left on the disk .*make room on the disk of "
        ):
            train(config)
    assert not list(config.directory.rglob("*.partial"))
    assert list((config.directory / "autoencoder" / "checkpoints").glob("*.ckpt"))

    stop_at(config, "layout", 5, monkeypatch)
    newest = sorted((config.directory / "layout" / "checkpoints").glob("*.ckpt"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    starts = config.directory / "starts.jsonl"
    starts.write_text(starts.read_text().replace(f"torch {torch.__version__}", "torch 2.0.0"))
    capfd.readouterr()
    changed = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, log_every_steps=2))
    assert train(changed).finished
    told = capfd.readouterr().err
    assert "damaged: not as in config.yaml: trainer.log_every_steps: 1 -> 2\n" in told
    assert f"damaged: not as in its last start: torch: 2.0.0 -> {torch.__version__}\n" in told
    assert f"is skipped: renamed to {newest.name}.damaged" in told
    assert not (config.directory / "layout" / "checkpoints").exists()
    straight, resumed = trained(world / "runs" / "base"), trained(config.directory)
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())


def test_a_run_trains_on_every_shape(world: Path) -> None:
    (world / "shapes").mkdir()
    signs = [render_sign(SyntheticOptions(size_pixels=64), index) for index in range(24)]
    cut = [dataclasses.replace(sign, image=sign.image[: 64 - 24 * (n % 2)]) for n, sign in enumerate(signs)]
    write_manifest(world / "shapes", write_shards(cut, world / "shapes", 16), {})
    overrides = ["data.max_aspect=2", "data.bucket_step_pixels=8", f"data.shards={world / 'shapes'}", "name=shapes"]
    config = load_config(world / "base.yaml", [*overrides, "data.resolutions=[32,48]"])
    assert len(config.data.stream(0).shapes) > 4
    assert train(config).finished
    with pytest.raises(UserError, match=r"data.bucket_step_pixels: images of 28 pixels.*a multiple of 8"):
        train(load_config(world / "base.yaml", [*overrides[:1], "data.bucket_step_pixels=4", "name=wrong_step"]))


def test_a_run_on_cached_states_learns_the_same(world: Path, call_verb: Call) -> None:
    overrides = ["losses.align_weight=0", f"base={world / 'runs' / 'base'}", "lora={rank: 2}"]
    given = ["name=adapted", *overrides]
    assert train(load_config(world / "base.yaml", given)).finished
    cache = world / "cache"
    code, printed, _ = call_verb(CACHE, world / "base.yaml", *overrides, "--out", cache)
    assert code == 0 and "32 of 32 samples cached" in printed
    cached = load_config(world / "base.yaml", ["name=adapted-cached", *overrides, f"data.cache={cache}"])
    assert train(cached).finished
    for stage in ("layout", "refine"):
        losses = [
            json.loads((world / "runs" / name / stage / "metrics.json").read_text())["diffusion"]
            for name in ("adapted", "adapted-cached")
        ]
        assert losses[0] == pytest.approx(losses[1], rel=0.02)
    with pytest.raises(UserError, match="another name"):
        train(dataclasses.replace(cached, data=dataclasses.replace(cached.data, cache=None)))
    stale = load_config(
        world / "base.yaml",
        ["name=stale", "data.max_aspect=2", "data.bucket_step_pixels=16", *overrides, f"data.cache={cache}"],
    )
    with pytest.raises(UserError, match=r"was made from something else \(fit differ\)"):
        train(stale)
    own = load_config(world / "base.yaml", ["name=own", f"data.cache={cache}"])
    with pytest.raises(UserError, match="trains its own autoencoder"):
        train(own)
    wants_images = [f"base={world / 'runs' / 'base'}", "lora={rank: 2}", f"data.cache={cache}", "name=aligned"]
    with pytest.raises(UserError, match=r"data.cache holds no images"):
        train(load_config(world / "base.yaml", wants_images))
    wants_patches = [*wants_images[:1], "trainable.lvlm=frozen", f"data.cache={cache}", "losses.region_weight=1"]
    with pytest.raises(UserError, match=r"losses.region_weight: a cache keeps neither patches nor token ids"):
        train(load_config(world / "base.yaml", [*wants_patches, "name=patches"]))


def test_a_resume_with_another_number_of_ranks_is_refused(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(load_config(world / "base.yaml"), name="ranks")
    stop_at(config, "layout", 5, monkeypatch)
    monkeypatch.setattr("vlad.training.datamodule.distributed.world_size", lambda: 2)
    with pytest.raises(UserError, match="stopped with 1 rank and cannot resume with 2"):
        train(config)


@pytest.mark.parametrize(
    ("policy", "error"),
    [
        ("stop", OSError(errno.ENOSPC, "No space left on device")),
        ("go_on", RuntimeError("[enforce fail at inline_container.cc] file write failed")),
    ],
)
def test_a_full_disk_is_reported_and_the_run_resumes(
    world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], policy: str, error: Exception
) -> None:
    # A background thread is given nothing that changes under it: the run after the failure equals one without.
    config = load_config(world / "base.yaml", [f"name=full-{policy}", f"trainer.on_save_failure={policy}"])
    save = torch.save

    def fill(content: dict[str, object], stream: BinaryIO) -> None:
        if (
            content["global_step"] >= (6 if policy == "stop" else 3)
            and len(content["optimizer_states"][0]["state"]) > 99
        ):  # type: ignore[index,arg-type]
            stream.write(b"the beginning of a checkpoint")
            raise error
        save(content, stream)

    with monkeypatch.context() as patch:
        patch.setattr("vlad.training.checkpoint.torch.save", fill)
        if policy == "stop":
            with pytest.raises(
                UserError, match=r"is full: step \d+ could not be saved.*would resume from step-00000003"
            ):
                train(config)
        else:
            assert train(config).finished
    assert not list(config.directory.rglob("*.partial"))
    told = capfd.readouterr().err
    assert ("Training goes on and tries again in at most 3 steps" in told) == (policy == "go_on")
    assert train(config).finished
    straight, resumed = trained(world / "runs" / "base"), trained(config.directory)
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())


def test_a_changed_config_is_refused_in_the_same_directory(world: Path) -> None:
    config = load_config(world / "base.yaml", ["train.refine.learning_rate=0.5"])
    with pytest.raises(UserError, match=r"train\.refine\.learning_rate"):
        train(config)


def test_an_image_does_not_depend_on_its_batch(world: Path) -> None:
    pipeline = load_pipeline(world / "runs" / "base")
    others = ['a red sign that says "A" and "LONGER"', 'a white card that says "STREETS" in black letters', "a wall"]
    alone = pipeline(PROMPT, 7)
    company = pipeline([*others, PROMPT], [1, 2, 3, 7])
    assert alone.images[0].tobytes() == company.images[3].tobytes()
    assert alone.layouts[0] == company.layouts[3]
    assert alone.images[0].tobytes() != pipeline(PROMPT, 8).images[0].tobytes()


def test_a_given_layout_takes_the_place_of_stage_one(world: Path) -> None:
    pipeline = load_pipeline(world / "runs" / "base")
    layout = Layout((TextLine("HI", box_polygon(0.1, 0.1, 0.6, 0.4)),))
    drawn = pipeline(PROMPT, 7, [layout])
    assert drawn.layouts == [layout]
    assert drawn.glyph_maps == [None]
    assert drawn.images[0].tobytes() != pipeline(PROMPT, 7).images[0].tobytes()


def test_the_pipeline_comes_back_from_its_folder(world: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline(world / "runs" / "base")
    pipeline.save_pretrained(tmp_path / "copy")
    again = VLADPipeline.from_pretrained(tmp_path / "copy")
    assert pipeline(PROMPT, 3).images[0].tobytes() == again(PROMPT, 3).images[0].tobytes()


def test_a_lora_run_makes_an_adapter_that_changes_the_images(world: Path) -> None:
    base = world / "runs" / "base"
    config = load_config(
        ROOT / "configs" / "lora.yaml",
        [
            f"base={base}",
            f"runs={world / 'runs'}",
            f"data.shards={world / 'shards'}",
            "data.image_pixels=32",
            "data.batch_size=4",
            "train.layout.steps=3",
            "train.refine.steps=3",
            "trainer.accelerator=cpu",
            "trainer.sample_every_steps=0",
        ],
    )
    assert train(config).finished
    adapter = config.directory / "adapter"
    for part in ("lvlm", "layout_unet", "refine_unet"):
        assert (adapter / part / "adapter_model.safetensors").is_file()
        about = adapter_metadata(adapter / part)
        assert (about["base"], len(about["fingerprint"])) == (str(base), 16)
        assert about["recipe"]["train"]["refine"]["steps"] == 3
    card = (adapter / "README.md").read_text(encoding="utf-8")
    assert f'base_model: "{base}"' in card and "refine_unet" in card
    plain, adapted = load_pipeline(base), load_pipeline(base, config.directory)
    assert plain(PROMPT, 3).images[0].tobytes() != adapted(PROMPT, 3).images[0].tobytes()


def test_sample_writes_images_layouts_and_a_grid(world: Path, tmp_path: Path, call_verb: Call) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f'{PROMPT}\na red sign that says "BUS"\n', encoding="utf-8")
    code, _, said = call_verb(SAMPLE, world / "runs" / "base", "--prompts", prompts, "--out", tmp_path / "out")
    assert code == 0, said
    images = sorted((tmp_path / "out").glob("*.png"))
    assert [path.name for path in images] == [
        "0000-a-blue-sign-that-says-house-at-the-top-s0.png",
        "0001-a-red-sign-that-says-bus-s0.png",
    ]
    assert np.asarray(Image.open(images[0])).shape == (32, 32, 3)
    layout = json.loads((tmp_path / "out" / "layouts" / f"{images[1].stem}.json").read_text(encoding="utf-8"))
    assert [line["text"] for line in layout["lines"]] == ["BUS"]
    assert (tmp_path / "out" / "grids" / "grid.png").is_file()


def test_two_processes_train_together(world: Path) -> None:
    steps = [f"train.{stage}.steps=2" for stage in ("autoencoder", "layout", "refine")]
    command = [sys.executable, "train.py", str(world / "base.yaml"), "name=two", "trainer.devices=2", *steps]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    directory = world / "runs" / "two"
    assert is_finished(load_config(directory / "config.yaml"))
    # A step of two processes is twice as many images: the rate is counted over both.
    metrics = json.loads((directory / "layout" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["images_per_second"] * metrics["seconds"] == pytest.approx(
        2 * 2 * 2 * 4, rel=0.01
    )  # ranks, steps, parts, batch
    assert done.stderr.count("samples in 2 shards") == 1
    one, two = trained(world / "runs" / "base"), trained(directory)
    assert one.keys() == two.keys()


@pytest.mark.parametrize(
    ("verb", "words", "said"),
    [
        (TRAIN, ["configs/none.yaml"], "configs/none.yaml"),
        (TRAIN, ["configs/tiny.yaml", "runs={new}", "data.shards=nowhere"], "nowhere"),
        (TRAIN, ["configs/tiny.yaml", "runs={new}", "data.shards={shards}", "data.held_out=gone"], "gone"),
        (TRAIN, ["configs/tiny.yaml", "train.layout.stepss=3"], "Did you mean 'steps'"),
        (TRAIN, ["configs/lora.yaml", "runs={new}", "data.shards={shards}"], "base="),
        (TRAIN, ["configs/lora.yaml", "runs={new}", "base=nowhere", "data.shards={shards}"], "nowhere"),
        (SAMPLE, ["nowhere", "--prompt", "x"], "nowhere"),
        (SAMPLE, ["{run}"], "--prompt"),
        (SAMPLE, ["{run}", "--prompt", " "], "empty"),
        (SAMPLE, ["{run}", "--prompt", 'a sign that says "HOUSE'], "never closed"),
        (SAMPLE, ["{run}", "--prompt", 'a sign that says "EXTRAORDINARY EXTRAORDINARY"'], "EXTRAORDINARY"),
        (SAMPLE, ["{run}", "--prompt", 'a sign that says "看"'], "看"),
        (SAMPLE, ["{run}", "--prompt", "x", "--layout", "none.json"], "none.json"),
        (SAMPLE, ["{run}", "--prompt", "x", "--out", "/proc/none"], "/proc/none"),
        (SAMPLE, ["--prompt", "x"], "sample.py RUN"),
        (SAMPLE, ["{run}", "--prompt", "x", "--solver", "flow-euler"], "does not fit"),
        (SAMPLE, ["{run}", "--prompt", "x", "--adapter", "nowhere"], "nowhere"),
        (EVALUATE, ["nowhere"], "nowhere"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call_verb: Call,
    verb: Verb,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(ROOT)
    places = {"run": world / "runs" / "base", "shards": world / "shards", "new": tmp_path}
    code, _, printed = call_verb(verb, *(word.format(**places) for word in words))
    assert code == 2, printed
    assert said in printed
    assert printed.strip().splitlines()[-1].startswith("error: ")
    assert not list(tmp_path.rglob("config.yaml")), "a call that could not work has claimed the run directory"


def test_samples_that_could_not_be_used_are_reported_at_the_end(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    write_shards((render_sign(SyntheticOptions(size_pixels=32), i) for i in range(12)), shards, 12)
    (shards / "manifest.json").unlink(missing_ok=True)
    shard = shards / "000000.tar"
    data = shard.read_bytes().replace(b'"caption"', b'"kaption"', 2)
    shard.write_bytes(data)
    with tarfile.open(shard, "a") as archive:
        archive.addfile(tarfile.TarInfo("._00000000.png"))
    changes = [f"data.shards={shards}", "data.max_bad_share=0.5", "name=bad", "layout.kind=none"]
    result = train(load_config(world / "base.yaml", [*changes, "train.refine.steps=6"]))
    said = capsys.readouterr().err
    assert "bad: 1 member of the shards passed over:\n  1 x hidden or AppleDouble member: 000000.tar: ._000" in said
    assert "bad: 2 samples could not be used (quarantine.jsonl names them all):\n  2 x json: " in said
    page = (result.directory / "report.html").read_text(encoding="utf-8")
    assert "Samples that could not be used (quarantine.jsonl names them all): 2" in page
    assert "2 x json: " in page
