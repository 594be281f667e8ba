"""The doctor: what its checks find, the table, and the exit code."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_world import write_small_world
from tool_fixtures import Call

from vlad.cli.train import DOCTOR
from vlad.config.load import load_config, save_config
from vlad.config.schema import Config
from vlad.profiling.doctor import checks
from vlad.profiling.doctor.all_reduce import all_reduce_rate
from vlad.profiling.doctor.checks import RunFacts, run_checks
from vlad.profiling.doctor.findings import Finding, exit_code, table
from vlad.profiling.training_throughput import StageFigures
from vlad.training.checkpoint import checkpoint_path
from vlad.training.validate import validate
from vlad.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_world(tmp_path_factory.mktemp("doctor"))


def config_of(world: Path, *overrides: str) -> Config:
    return load_config(world / "config.yaml", overrides)


def test_the_table_has_remedies_and_a_failure_sets_the_exit_code() -> None:
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
    ("name", "version", "message"),
    [("lightning", "2.6.3", "malicious release"), ("torch", "2.9.1", "too old: torch 2.9.1 (at least 2.11)")],
)
def test_malicious_and_old_releases_fail(
    world: Path, name: str, version: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda package: version if package == name else real(package))
    finding = checks.versions(RunFacts(config_of(world)))
    assert finding.level == "fail"
    assert message in finding.found
    assert "pip install" in finding.remedy


def test_a_working_machine_passes(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = RunFacts(config_of(world))
    for check in (checks.versions, checks.device, checks.launch, checks.xformers, checks.switches, checks.models):
        assert check(facts).level == "ok", check
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert checks.device(facts).found == "CPU, 1 thread"
    assert checks.trained_dtypes(facts).level == "ok"
    assert checks.disk(facts).level == "ok"
    assert checks.memory(facts).level == "ok"
    assert checks.attention(facts).found.startswith("torch SDPA")
    assert checks.all_reduce(facts).found == "one process, not needed"


def small_disk(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("vlad.profiling.doctor.checks.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())


def small_memory(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checks, "available_memory", lambda _: 1000)


def no_compiler(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checks, "prove_compile", lambda _: "no g++")


def slow_steps(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checks, "measure_stage", lambda *_: StageFigures(1e9, 1e-9, 0.0, 1, ""))


@pytest.mark.parametrize(
    ("check", "overrides", "prepare", "level", "remedy"),
    [
        (checks.disk, [], small_disk, "fail", "Free some space"),
        (checks.memory, [], small_memory, "fail", "vlad plan"),
        (checks.switches, ["trainer.compile=blocks"], no_compiler, "fail", "trainer.compile=none"),
        (checks.shards, ["data.workers=4"], None, "warn", "make at least 4 shards"),
        (checks.loader, [], slow_steps, "warn", "raise data.workers"),
    ],
)
def test_what_would_end_or_slow_a_run_has_a_remedy(
    world: Path,
    check: Callable[[RunFacts], Finding],
    overrides: list[str],
    prepare: Callable[[pytest.MonkeyPatch], None] | None,
    level: str,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if prepare is not None:
        prepare(monkeypatch)
    finding = check(RunFacts(config_of(world, *overrides)))
    assert finding.level == level
    assert remedy in finding.remedy


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
    finding = next(found for found in run_checks(config_of(world, *overrides)) if found.name == name)
    assert finding.level == "fail"
    assert message in finding.found


def test_the_doctor_makes_every_check_of_validate(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {node.func.id for node in ast.walk(ast.parse(inspect.getsource(validate))) if isinstance(node, ast.Call)}  # type: ignore[attr-defined]
    places = {"check_run_directory": "vlad.training.publish"}

    def refuse(*_: object) -> None:
        raise UserError("refused")

    for name in calls:
        with monkeypatch.context() as patch:
            patch.setattr(f"{places.get(name, 'vlad.profiling.doctor.checks')}.{name}", refuse)
            failure = next(finding for finding in run_checks(config_of(world)) if finding.level == "fail")
        assert failure.found == "refused", name


def test_trained_weights_in_half_precision_are_named(world: Path) -> None:
    facts = RunFacts(config_of(world))
    facts.built[0].refine_unet.conv_in.to(torch.bfloat16)
    finding = checks.trained_dtypes(facts)
    assert finding.level == "fail"
    assert "unet.conv_in.weight" in finding.found


def test_memory_is_planned_for_the_largest_stage(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = RunFacts(config_of(world, "train.refine.ema_half_lives=[10]"))
    assert facts.stages == ["autoencoder", "layout", "refine"]
    parts, _ = facts.built
    unet = sum(parameter.numel() for parameter in parts.refine_unet.parameters())
    assert sum(kind.count for kind in facts.trained["refine"].values()) == unet
    plan = facts.memory["refine"]
    assert (plan.gradients, plan.optimiser, plan.averages) == (4 * unet, 8 * unet, 2 * 4 * unet)
    largest = max(facts.memory.values(), key=lambda plan: plan.total)
    monkeypatch.setattr(checks, "available_memory", lambda _: largest.total)  # all of it: too little margin
    assert checks.memory(facts).level == "warn"
    monkeypatch.setattr(checks, "available_memory", lambda _: 2 * largest.total)
    assert checks.memory(facts).level == "ok"
    # Two processes on a CPU need twice the memory; sharded gradients half.
    facts.processes = 2
    assert checks.memory(facts).level == "warn"
    shared = RunFacts(config_of(world, "trainer.devices=2", "trainer.strategy=fsdp", "lora=null"))
    assert shared.memory["refine"].gradients == 2 * unet


def test_ema_snapshots_count_on_the_disk(world: Path) -> None:
    widths = "train.refine.ema_power_widths=[0.05,0.1]"
    few, many = (
        RunFacts(config_of(world, widths, "train.refine.steps=100", f"train.refine.ema_snapshot_every_steps={every}"))
        for every in (100, 1)
    )
    count = sum(kind.count for kind in few.trained["refine"].values())
    # Two EMAs in float32, once and a hundred times.
    assert checks.disk(few).found.endswith(f"EMA snapshots {checks._gb(8 * count)}")
    assert checks.disk(many).found.endswith(f"EMA snapshots {checks._gb(800 * count)}")
    assert "snapshots" not in checks.disk(RunFacts(config_of(world))).found


def test_the_state_of_the_run_directory_is_reported(world: Path, tmp_path: Path) -> None:
    def run_finding(*overrides: str) -> Finding:
        return next(f for f in run_checks(config_of(world, f"runs={tmp_path}", *overrides)) if f.name == "run")

    config = config_of(world, f"runs={tmp_path}")
    assert run_finding().found == f"a new run in {config.directory}"
    config.directory.mkdir()
    save_config(config, config.directory / "config.yaml")
    assert run_finding().found.endswith("at the beginning of a stage")
    checkpoint = checkpoint_path(config.directory / "layout" / "checkpoints", 7)
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert str(checkpoint) in run_finding().found
    refused = run_finding("seed=3")
    assert refused.level == "fail" and "seed: 0 -> 3" in refused.found
    for path in ("refine/metrics.json", "pipeline/model_index.json"):
        (config.directory / path).parent.mkdir()
        (config.directory / path).touch()
    finished = run_finding()
    assert finished.level == "warn" and "name=..." in finished.remedy


def test_a_quantised_base_is_not_planned(world: Path) -> None:
    facts = RunFacts(config_of(world))
    packed = torch.nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    facts.built[0].refine_unet.conv_in.weight = packed
    finding = checks.memory(facts)
    assert finding.level == "warn" and "vlad plan" in finding.remedy


def test_all_reduce_between_two_ranks() -> None:
    assert all_reduce_rate(2, "cpu") > 0


def test_checks_that_depend_on_a_failed_one_are_skipped(world: Path) -> None:
    found = {finding.name: finding for finding in run_checks(config_of(world, "data.shards=nowhere"))}
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
