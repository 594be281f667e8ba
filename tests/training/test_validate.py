"""`validate`: what a run cannot do here is refused before any long work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_world import small_signs, write_small_shards, write_small_world
from tool_fixtures import Call

from vlad.cli.benchmarks import TRAIN as BENCHMARK
from vlad.cli.train import CACHE, DOCTOR, PLAN, TRAIN
from vlad.cli.verb import Verb
from vlad.config.load import load_config
from vlad.profiling.doctor.findings import Finding
from vlad.training.validate import check_machine
from vlad.types import Layout
from vlad.utils.errors import UserError

FSDP = ("trainer.devices=2", "trainer.strategy=fsdp")
EVERYWHERE = (TRAIN, DOCTOR, BENCHMARK, PLAN, CACHE)
# A plan is of a machine elsewhere, before there is data; a cache is made in one process.
WITHOUT_DATA = (TRAIN, DOCTOR, BENCHMARK, PLAN)
WITHOUT_PLAN = (TRAIN, DOCTOR, BENCHMARK, CACHE)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 16 signs, the same without a line of text, and a config."""
    folder = write_small_world(tmp_path_factory.mktemp("validated"))
    write_small_shards(folder / "blank", [replace(sign, layout=Layout(())) for sign in small_signs()])
    with (folder / "config.yaml").open("a", encoding="utf-8") as config:
        config.write("losses: {align_weight: 0.0}\n")
    return folder


@pytest.mark.parametrize(
    ("verbs", "overrides", "message"),
    [
        (EVERYWHERE, ["base=runs/a", "text_base=runs/b"], "text_base: the base brings"),
        (
            EVERYWHERE,
            ["base=runs/a", "lora={layout_unet: false, refine_unet: false}", "trainable.lvlm=frozen"],
            "lora: no part carries",
        ),
        (EVERYWHERE, ["base=runs/a", "train.refine.steps=0"], "train.refine.steps must be at least 1"),
        (EVERYWHERE, ["base=runs/a", "prior.images=2"], "prior.images: 2 are fewer than a batch"),
        (WITHOUT_DATA, [*FSDP, "trainer.compile=blocks"], "trainer.strategy: fsdp: compiled and sharded"),
        (WITHOUT_DATA, [*FSDP, "validation.share=0.1"], "trainer.strategy: fsdp: validation passes"),
        (WITHOUT_PLAN, ["base=runs/a", "data.shards=nowhere"], "nowhere"),
        (WITHOUT_PLAN, ["base=runs/a", "data.batch_size=17"], "samples are too few"),
    ],
)
def test_what_train_refuses_every_verb_on_its_config_refuses(
    verbs: tuple[Verb, ...],
    overrides: list[str],
    message: str,
    world: Path,
    tmp_path: Path,
    call_verb: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vlad.profiling.doctor.checks.loader", lambda facts: Finding("loader", "ok", "not measured"))
    for verb in verbs:
        extra = ["--out", tmp_path / "cache"] if verb is CACHE else []
        code, printed, complaint = call_verb(verb, world / "config.yaml", *overrides, *extra)
        assert code == (1 if verb is DOCTOR else 2), (verb.name, printed)
        assert message in (printed if verb is DOCTOR else complaint), (verb.name, printed, complaint)
        if verb is not DOCTOR:
            assert printed == "", verb.name
    assert not (world / "runs").exists() and not (tmp_path / "cache").exists()


def test_a_cache_of_shards_without_text_is_refused(
    world: Path, stable_diffusion: Path, tmp_path: Path, call_verb: Call
) -> None:
    overrides = [f"data.shards={world / 'blank'}", f"autoencoder.path={stable_diffusion / 'vae'}"]
    code, _, complaint = call_verb(CACHE, world / "config.yaml", *overrides, "--out", tmp_path / "cache")
    assert code == 2 and "not one line of text is annotated" in complaint
    assert not (tmp_path / "cache").exists()


def test_more_processes_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text("trainer: {devices: 4}")
    check_machine(load_config(tmp_path / "a.yaml", ["trainer.accelerator=cpu"]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_machine(load_config(tmp_path / "a.yaml", ["trainer.devices=auto"]))
    check_machine(load_config(tmp_path / "a.yaml", ["trainer.accelerator=cpu"]))
    with pytest.raises(UserError, match=r"trainer\.devices is 4, and torch finds 2 GPUs here"):
        check_machine(load_config(tmp_path / "a.yaml"))
