"""The plan of a run: counted where it can be, smaller with what makes it smaller, near what is measured."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vlad.building import build_parts
from vlad.config import Config, load_config
from vlad.diffusion.stand_in import StandInOptions, save_stand_in
from vlad.memory_plan import CONTEXT_BYTES, Switches, plan_stage, plan_table, start_line, ways_to_fit
from vlad.training.stages import Parts

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "sd15"
    save_stand_in("sd15", folder)
    return folder


def parts_of(model: Path, *overrides: str) -> tuple[Config, Parts]:
    small = [f"stable_diffusion.path={model}", "lvlm.path=null", "data.picture_pixels=128", "composition.width=64"]
    config = load_config(ROOT / "configs" / "sd15.yaml", [*small, "data.batch_size=4", *overrides])
    parts, config = build_parts(config)
    return config, parts


def test_what_can_be_counted_is_counted(model: Path) -> None:
    config, parts = parts_of(model, "lora=null")
    unet = sum(p.numel() for p in parts.refine_unet.parameters())
    frozen = [parts.autoencoder, parts.text_side, parts.alignment]
    others = sum(t.nbytes for m in frozen for t in (*m.parameters(), *m.buffers()))

    plan = plan_stage(config, parts, "refine")
    assert plan.gradients == 4 * unet and plan.optimiser == 8 * unet and plan.averages == 4 * unet
    assert plan.weights == 4 * unet + others
    assert plan.activations > 0
    assert plan.total == plan.weights + plan.gradients + plan.optimiser + plan.averages + plan.activations
    # The layout stage trains the CCM and the spelling encoder as well, and keeps what they make of the prompts.
    layout = plan_stage(config, parts, "layout")
    assert parts.layout_unet is not None
    ccm = sum(p.numel() for p in parts.text_side.composition.parameters())
    assert layout.gradients == 4 * (ccm + sum(p.numel() for p in parts.layout_unet.parameters()))

    now = Switches.of(config, "refine")
    eight = plan_stage(config, parts, "refine", replace(now, moment_bytes=2, average_on_cpu=True))
    assert eight.optimiser == 2 * unet and eight.averages == 0


def test_adapters_take_a_share_of_full_training(model: Path) -> None:
    config, parts = parts_of(model, "lora.rank=2")
    full = plan_stage(*parts_of(model, "lora=null"), "refine")
    now = Switches.of(config, "refine")
    plan = plan_stage(config, parts, "refine", now)
    assert plan.gradients < full.gradients / 3 and plan.activations < full.activations
    packed = plan_stage(config, parts, "refine", replace(now, base_bits=4))
    halved = plan_stage(config, parts, "refine", replace(now, frozen=torch.bfloat16))
    assert packed.weights < plan.weights and halved.weights < plan.weights


def test_ways_to_fit_go_on_until_it_fits(model: Path) -> None:
    config, parts = parts_of(model)
    every = ways_to_fit(config, parts, "refine", room_bytes=1)
    totals = [step.plan.total for step in every]
    assert len(every) > 4 and totals == sorted(totals, reverse=True) and totals[-1] < totals[0] / 2
    assert every[1].options == "+ data.batch_size=1 train.refine.accumulate_batches=32"
    enough = ways_to_fit(config, parts, "refine", room_bytes=totals[1] + CONTEXT_BYTES)
    assert [step.options for step in enough] == [step.options for step in every[:2]]
    assert plan_table(enough, totals[1] + CONTEXT_BYTES).splitlines()[-1].endswith("  fits")
    assert plan_table(every, 1).count("does not fit") == len(every)


def test_a_run_that_is_small_has_nothing_to_plan(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, parts = parts_of(model)
    assert start_line(config, parts, ["layout", "refine"]) is None
    monkeypatch.setattr("vlad.memory_plan.NOTHING_TO_PLAN", 1000)
    monkeypatch.setattr("vlad.memory_plan.device_bytes", lambda: 2 * 10**9)
    line = start_line(config, parts, ["layout", "refine"])
    assert line is not None and line.startswith("memory: about ") and line.endswith(" of 2.0")
    monkeypatch.setattr("vlad.memory_plan.device_bytes", lambda: 10**6)
    assert "tools/plan.py says what would make it fit" in str(start_line(config, parts, ["refine"]))
    assert start_line(config, parts, ["align"]) is None
    packed = torch.nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    parts.refine_unet.conv_in.weight = packed
    assert start_line(config, parts, ["refine"]) is None


def test_the_command_prints_a_table_a_stage_and_refuses_nonsense(model: Path) -> None:
    config, small = "configs/sd15.yaml", [f"stable_diffusion.path={model}", "lvlm.path=null", "data.picture_pixels=64"]
    told = [
        subprocess.run(
            [sys.executable, "tools/plan.py", config, *small, "--gpu-gb", room],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        for room in ("12", "-3")
    ]
    assert told[0].returncode == 0, told[0].stderr
    assert told[0].stdout.count("as configured") == 2 and "fits" in told[0].stdout
    assert (told[1].returncode, told[1].stderr) == (
        2,
        "error: --gpu-gb must be a number of gigabytes above 0, not -3.\n",
    )


@pytest.mark.long
@pytest.mark.parametrize("overrides", [["data.batch_size=2", "lora=null"], ["data.batch_size=4"]])
def test_the_plan_is_within_a_fifth_of_what_is_measured(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    benchmark = importlib.import_module("benchmark")
    save_stand_in("sd15", tmp_path / "sd15", StandInOptions(benchmark.PLANNED_CHANNELS, layers_per_block=2))
    planned, measured = benchmark.planned_and_measured(tmp_path / "sd15", "refine", 256, overrides)
    assert planned == pytest.approx(measured, rel=0.2)
