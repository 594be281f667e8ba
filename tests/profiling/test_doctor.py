"""What the doctor finds before a long run, and how its command ends."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tool_fixtures import Call

from vlad.cli.train import DOCTOR
from vlad.config.load import load_config, save_config
from vlad.config.schema import Config
from vlad.data.options import SyntheticOptions
from vlad.data.shards.writer import write_manifest, write_shards
from vlad.data.signs import render_sign
from vlad.profiling.doctor import checks
from vlad.profiling.doctor.all_reduce import all_reduce_rate
from vlad.profiling.doctor.checks import Examined, examine
from vlad.profiling.doctor.findings import Finding, exit_code, table
from vlad.profiling.training_throughput import StageFigures
from vlad.training.checkpoint import checkpoint_path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
name: looked-at
runs: {folder}/runs
data: {{shards: {folder}/shards, image_pixels: 32, batch_size: 4, workers: 0, shuffle_window: 8}}
lvlm: {{hidden_size: 32, layers: 1, heads: 2, vision_hidden_size: 32, vision_layers: 1, vision_pixels: 32}}
composition: {{width: 32, layers: 1, heads: 2, output_width: 32}}
autoencoder: {{latent_channels: 8, decoder_width: 16, decoder_layers: 1}}
layout: {{unet: {{block_channels: [32], heads: 2}}}}
refine: {{unet: {{block_channels: [32], heads: 2}}}}
trainer: {{accelerator: cpu}}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    (folder / "shards").mkdir()
    signs = (render_sign(SyntheticOptions(size_pixels=32, count=16), number) for number in range(16))
    write_manifest(folder / "shards", write_shards(signs, folder / "shards", 8), {})
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder), encoding="utf-8")
    return folder


def config_of(world: Path, *overrides: str) -> Config:
    return load_config(world / "config.yaml", overrides)


def test_the_table_says_what_to_do_and_its_worst_line_is_the_exit_code() -> None:
    findings = [
        Finding("disk", "ok", "1 GB free"),
        Finding("loader", "warn", "3 images/s " * 20, "Raise data.workers."),
    ]
    lines = table(findings, 80).splitlines()
    assert lines[0] == "ok   disk    1 GB free"
    assert lines[1].startswith("warn loader  3 images/s")
    assert lines[-1].endswith("Raise data.workers.")
    assert max(map(len, lines)) <= 80
    assert exit_code(findings) == 0
    assert exit_code([*findings, Finding("device", "fail", "no GPU")]) == 1


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [("lightning", "2.6.3", "malicious release"), ("torch", "2.9.1", "too old: torch 2.9.1 (at least 2.11)")],
)
def test_releases_that_must_not_run_fail(
    world: Path, name: str, version: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda asked: version if asked == name else real(asked))
    finding = checks.versions(Examined(config_of(world)))
    assert finding.level == "fail"
    assert said in finding.found
    assert "pip install" in finding.remedy


def test_what_is_there_passes(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examined = Examined(config_of(world))
    for check in (checks.versions, checks.device, checks.launch, checks.xformers, checks.switches, checks.models):
        assert check(examined).level == "ok", check
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert checks.device(examined).found == "CPU, 1 thread"
    assert checks.trained_in(examined).level == "ok"
    assert checks.disk(examined).level == "ok"
    assert checks.memory(examined).level == "ok"
    assert checks.attention(examined).found.startswith("torch SDPA")
    assert checks.all_reduce(examined).found == "one process, nobody to talk to"


def small_disk(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("vlad.profiling.doctor.checks.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())


def small_memory(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checks, "available_memory", lambda _: 1000)


def no_compiler(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checks, "prove_compile", lambda _: "no g++")


def slow_steps(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checks, "measure_stage", lambda *_: StageFigures(1e9, 1e-9, 0.0, 1, ""))


@pytest.mark.parametrize(
    ("check", "overrides", "prepare", "level", "said"),
    [
        (checks.disk, [], small_disk, "fail", "Make room"),
        (checks.memory, [], small_memory, "fail", "tools/plan.py"),
        (checks.switches, ["trainer.compile=blocks"], no_compiler, "fail", "trainer.compile=none"),
        (checks.shards, ["data.workers=4"], None, "warn", "make at least 4 shards"),
        (checks.loader, [], slow_steps, "warn", "raise data.workers"),
    ],
)
def test_what_would_end_or_slow_a_run_is_told_with_its_remedy(
    world: Path,
    check: Callable[[Examined], Finding],
    overrides: list[str],
    prepare: Callable[[pytest.MonkeyPatch], None] | None,
    level: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if prepare is not None:
        prepare(monkeypatch)
    finding = check(Examined(config_of(world, *overrides)))
    assert finding.level == level
    assert said in finding.remedy


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("config", ["lora={rank: 2}"], "adapters need a base"),
        ("launch", ["trainer.nodes=2"], "nothing has started processes on other machines"),
        ("shards", ["data.batch_size=17"], "lower data.batch_size"),
        ("shards", ["data.cache=nowhere", "base=nowhere"], "no finished cache at nowhere"),
    ],
)
def test_what_training_refuses_fails(world: Path, name: str, overrides: list[str], message: str) -> None:
    finding = next(found for found in examine(config_of(world, *overrides)) if found.name == name)
    assert finding.level == "fail"
    assert message in finding.found


def test_trained_weights_in_half_precision_are_named(world: Path) -> None:
    examined = Examined(config_of(world))
    examined.built[0].refine_unet.conv_in.to(torch.bfloat16)
    finding = checks.trained_in(examined)
    assert finding.level == "fail"
    assert "unet.conv_in.weight" in finding.found


def test_memory_is_that_of_the_plan_of_the_fullest_stage(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examined = Examined(config_of(world, "train.refine.ema_half_lives=[10]"))
    assert examined.stages == ["autoencoder", "layout", "refine"]
    parts, _ = examined.built
    unet = sum(parameter.numel() for parameter in parts.refine_unet.parameters())
    assert sum(kind.count for kind in examined.trained["refine"].values()) == unet
    plan = examined.memory["refine"]
    assert (plan.gradients, plan.optimiser, plan.averages) == (4 * unet, 8 * unet, 2 * 4 * unet)
    fullest = max(examined.memory.values(), key=lambda plan: plan.total)
    monkeypatch.setattr(checks, "available_memory", lambda _: fullest.total)  # all of it: too near to the edge
    assert checks.memory(examined).level == "warn"
    monkeypatch.setattr(checks, "available_memory", lambda _: 2 * fullest.total)
    assert checks.memory(examined).level == "ok"
    # Two processes on a CPU take its memory twice; what they share they take once.
    examined.processes = 2
    assert checks.memory(examined).level == "warn"
    shared = Examined(config_of(world, "trainer.devices=2", "trainer.strategy=fsdp", "lora=null"))
    assert shared.memory["refine"].gradients == 2 * unet


def test_snapshots_of_averages_take_room_on_the_disk(world: Path) -> None:
    widths = "train.refine.ema_power_widths=[0.05,0.1]"
    few, many = (
        Examined(config_of(world, widths, "train.refine.steps=100", f"train.refine.ema_snapshot_every_steps={every}"))
        for every in (100, 1)
    )
    count = sum(kind.count for kind in few.trained["refine"].values())
    # Two averages in float32, once and a hundred times.
    assert checks.disk(few).found.endswith(f"snapshots of averages {checks._gb(8 * count)}")
    assert checks.disk(many).found.endswith(f"snapshots of averages {checks._gb(800 * count)}")
    assert "snapshots" not in checks.disk(Examined(config_of(world))).found


def test_what_the_run_directory_holds_is_told(world: Path, tmp_path: Path) -> None:
    def looked_at(*overrides: str) -> Finding:
        return next(f for f in examine(config_of(world, f"runs={tmp_path}", *overrides)) if f.name == "run")

    config = config_of(world, f"runs={tmp_path}")
    assert looked_at().found == f"a new one in {config.directory}"
    config.directory.mkdir()
    save_config(config, config.directory / "config.yaml")
    assert looked_at().found.endswith("at the beginning of a stage")
    checkpoint = checkpoint_path(config.directory / "layout" / "checkpoints", 7)
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert str(checkpoint) in looked_at().found
    refused = looked_at("seed=3")
    assert refused.level == "fail" and "seed: 0 -> 3" in refused.found
    for path in ("refine/metrics.json", "pipeline/model_index.json"):
        (config.directory / path).parent.mkdir()
        (config.directory / path).touch()
    finished = looked_at()
    assert finished.level == "warn" and "name=..." in finished.remedy


def test_a_packed_base_is_not_planned(world: Path) -> None:
    examined = Examined(config_of(world))
    packed = torch.nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    examined.built[0].refine_unet.conv_in.weight = packed
    finding = checks.memory(examined)
    assert finding.level == "warn" and "tools/plan.py" in finding.remedy


def test_two_ranks_reach_each_other() -> None:
    assert all_reduce_rate(2, "cpu") > 0


def test_what_follows_from_a_failure_is_left_out(world: Path) -> None:
    found = {finding.name: finding for finding in examine(config_of(world, "data.shards=nowhere"))}
    assert "nowhere" in found["shards"].found
    assert found["shards"].level == "fail"
    assert found["loader"].level == "warn"
    assert "because of" in found["loader"].found


def test_the_command_line(world: Path, call_verb: Call) -> None:
    code, printed, _ = call_verb(DOCTOR, world / "config.yaml", "data.batch_size=17")
    assert code == 1
    assert "fail shards" in printed
    code, _, complaint = call_verb(DOCTOR, world / "config.yaml", "data.batchsize=4")
    assert code == 2
    assert complaint.startswith("error: ")
    assert not (world / "runs").exists()
