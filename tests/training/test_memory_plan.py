"""Memory plan: counts, options that make a stage fit, and the measured peak."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tool_fixtures import Call

from vlad.cli.train import PLAN
from vlad.config.load import load_config
from vlad.config.schema import Config
from vlad.config.training import OptimOptions
from vlad.profiling.memory_plan_check import PLANNED_CHANNELS, planned_and_measured
from vlad.profiling.stand_in import StandInOptions, save_stand_in
from vlad.training import memory_trace as tracing
from vlad.training.build import build_parts
from vlad.training.memory_plan import (
    CONTEXT_BYTES,
    MemoryOptions,
    StagePlan,
    Traces,
    checkpoint_bytes,
    memory_line,
    plan_stage,
    plan_table,
    ways_to_fit,
)
from vlad.training.parts import Parts

ROOT = Path(__file__).resolve().parents[2]


class World:
    """A stand-in's config and parts, and plans of its stages that trace each shape once."""

    def __init__(self, model: Path, *overrides: str) -> None:
        small = ["lvlm.path=null", "composition.width=32", "composition.layers=1", "composition.heads=2"]
        of_model = [f"stable_diffusion.path={model}", "data.image_pixels=256", "data.batch_size=4"]
        self.parts: Parts
        self.config: Config
        config = load_config(ROOT / "configs" / "sd15.yaml", [*small, *of_model, *overrides])
        self.parts, self.config = build_parts(config)
        self.traces = {"layout": Traces(), "refine": Traces()}

    def plan(self, name: str = "refine", **changes: object) -> StagePlan:
        switches = replace(MemoryOptions.of(self.config, name), **changes)  # type: ignore[arg-type]
        return plan_stage(self.config, self.parts, name, switches, self.traces[name])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "sd15"
    save_stand_in("sd15", folder, StandInOptions(block_channels=(64,)))  # few operations to trace
    return folder


@pytest.fixture(scope="module")
def full(model: Path) -> World:
    return World(model, "lora=null")


@pytest.fixture(scope="module")
def adapted(model: Path) -> World:
    return World(model, "lora.rank=2")


def test_weights_gradients_and_moments_are_counted(full: World) -> None:
    parts = full.parts
    assert parts.layout_unet is not None
    unet = sum(p.numel() for p in parts.refine_unet.parameters())
    frozen = [parts.autoencoder, parts.text_side, parts.alignment]
    others = sum(t.nbytes for m in frozen for t in (*m.parameters(), *m.buffers()))

    plan = full.plan()
    assert plan.gradients == 4 * unet and plan.optimiser == 8 * unet and plan.averages == 4 * unet
    assert plan.weights == 4 * unet + others
    assert plan.activations > 0
    assert plan.total == plan.weights + plan.gradients + plan.optimiser + plan.averages + plan.activations
    # The layout stage trains the CCM and the spelling encoder as well, and keeps what they make of the prompts.
    ccm = sum(p.numel() for p in parts.text_side.composition.parameters())
    layout = full.plan("layout")
    assert layout.gradients == 4 * (ccm + sum(p.numel() for p in parts.layout_unet.parameters()))

    eight = full.plan(moment_bytes=2, average_on_cpu=True)
    assert eight.optimiser == 2 * unet and eight.averages == 0
    assert checkpoint_bytes(10, OptimOptions(optimizer="adamw-8bit")) == 10 * (4 + 2 + 4)
    assert checkpoint_bytes(10, OptimOptions(ema_half_lives=(10.0,))) == 10 * (4 + 8 + 2 * 4)


def test_sharding_ranks_hold_a_part_each(full: World) -> None:
    whole, half = full.plan(), full.plan(ranks=2)
    assert [2 * half.gradients, 2 * half.optimiser, 2 * half.averages] == [
        whole.gradients,
        whole.optimiser,
        whole.averages,
    ]
    assert half.activations == whole.activations
    # Of the weights the UNet and the LVLM's layers are shared; autoencoder, CCM and embeddings are whole on each.
    unet, lvlm = (
        sum(p.nbytes for p in module.parameters()) for module in (full.parts.refine_unet, full.parts.text_side.lvlm)
    )
    assert unet / 2 < whole.weights - half.weights < (unet + lvlm) / 2


def test_adapters_take_a_share_of_full_training(full: World, adapted: World) -> None:
    whole, plan = full.plan(), adapted.plan()
    # Activations may be more: at this size what adapters make outweighs what frozen matrices need not keep.
    assert plan.gradients < whole.gradients / 3 and plan.total < whole.total
    assert adapted.plan(base_bits=4).weights < plan.weights
    assert adapted.plan(frozen=torch.bfloat16).weights < plan.weights


def test_rows_are_added_until_a_plan_fits(adapted: World, monkeypatch: pytest.MonkeyPatch) -> None:
    config, parts = adapted.config, adapted.parts
    traced: list[tracing.StepShape] = []
    known: dict[tracing.StepShape, int] = {}

    def trace(unet: object, shape: tracing.StepShape) -> int:
        traced.append(shape)
        if shape not in known:
            known[shape] = tracing.traced_step_bytes(unet, shape)
        return known[shape]

    monkeypatch.setattr("vlad.training.memory_plan.traced_step_bytes", trace)
    every = ways_to_fit(config, parts, "refine", room_bytes=1)
    totals = [step.plan.total for step in every]
    assert len(every) == 7 and totals == sorted(totals, reverse=True) and totals[-1] < totals[0] / 2
    assert every[1].options == "+ data.batch_size=1 train.refine.accumulate_batches=32"
    # As it is, one image at a time, recomputed, frozen matrices in bf16: the rest changes no shape.
    assert len(traced) == len(set(traced)) == 4
    enough = ways_to_fit(config, parts, "refine", room_bytes=totals[1] + CONTEXT_BYTES)
    assert [step.options for step in enough] == [step.options for step in every[:2]]
    assert plan_table(enough, totals[1] + CONTEXT_BYTES).splitlines()[-1].endswith("  fits")
    assert plan_table(every, 1).count("does not fit") == len(every)


def test_small_and_quantised_models_are_not_planned(adapted: World, monkeypatch: pytest.MonkeyPatch) -> None:
    config, parts = adapted.config, adapted.parts
    with monkeypatch.context() as patch:
        patch.setattr("vlad.training.memory_plan.traced_step_bytes", None)  # not even traced
        assert memory_line(config, parts, ["layout", "refine"]) is None
    monkeypatch.setattr("vlad.training.memory_plan.NOTHING_TO_PLAN", 1000)
    monkeypatch.setattr("vlad.training.memory_plan.device_bytes", lambda: 2 * 10**9)
    line = memory_line(config, parts, ["layout", "refine"])
    assert line is not None and line.startswith("memory: about ") and line.endswith(" of 2.0")
    monkeypatch.setattr("vlad.training.memory_plan.device_bytes", lambda: 10**6)
    assert "tools/plan.py says what would make it fit" in str(memory_line(config, parts, ["refine"]))
    assert memory_line(config, parts, ["align"]) is None
    packed = torch.nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    monkeypatch.setitem(parts.refine_unet.conv_in._parameters, "weight", packed)
    assert memory_line(config, parts, ["refine"]) is None


def test_the_command_prints_a_table_a_stage_and_refuses_nonsense(model: Path, call_verb: Call) -> None:
    config = [str(ROOT / "configs" / "sd15.yaml"), f"stable_diffusion.path={model}", "lvlm.path=null"]
    code, printed, _ = call_verb(PLAN, *config, "data.image_pixels=64", "--gpu-gb", "12")
    assert code == 0
    assert printed.count("as configured") == 2 and "which 'fits' counts" in printed
    refused = "error: --gpu-gb must be a number of gigabytes above 0, not -3.\n"
    assert call_verb(PLAN, *config, "--gpu-gb", "-3") == (2, "", refused)


@pytest.mark.long
@pytest.mark.parametrize("overrides", [["data.batch_size=2", "lora=null"], ["data.batch_size=4"]])
def test_the_plan_is_within_a_fifth_of_the_measured_peak(overrides: list[str], tmp_path: Path) -> None:
    save_stand_in("sd15", tmp_path / "sd15", StandInOptions(PLANNED_CHANNELS, layers_per_block=2))
    planned, measured = planned_and_measured(tmp_path / "sd15", "refine", 256, overrides)
    assert planned == pytest.approx(measured, rel=0.2)
