"""Resuming: auto, none, or a checkpoint of another run; and messages when configs differ."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from vlad.config.load import load_config, save_config
from vlad.config.schema import Config
from vlad.training.callbacks.checkpointing import CheckpointWriter
from vlad.training.checkpoint import checkpoint_path, list_checkpoints, step_of, write_checkpoint
from vlad.training.resume import (
    check_run_directory,
    checkpoint_of_another_run,
    config_record,
    finished_stage,
    freely_changed,
    listed,
    starting_checkpoint,
)
from vlad.utils.errors import UserError

ORDER = ["autoencoder", "layout", "refine"]


def config(tmp_path: Path, name: str, *overrides: str) -> Config:
    empty = tmp_path / "empty.yaml"
    empty.write_text("{}")
    return load_config(empty, [f"runs={tmp_path / 'runs'}", f"name={name}", *overrides])


def begin(of: Config, stage: str, *steps: int) -> Path:
    """A run directory with checkpoints of a stage and what the stages before have trained."""
    of.directory.mkdir(parents=True, exist_ok=True)
    save_config(of, of.directory / "config.yaml")
    for before in ORDER[: ORDER.index(stage)]:
        (of.directory / before).mkdir(exist_ok=True)
        (of.directory / before / "trained.safetensors").write_bytes(b"")
        (of.directory / before / "metrics.json").write_text("{}")
    folder = of.directory / stage / "checkpoints"
    folder.mkdir(parents=True)
    for step in steps:
        write_checkpoint({"state_dict": {}, "run": config_record(of, stage)}, checkpoint_path(folder, step))
    return folder


def test_auto_takes_the_newest_valid_checkpoint_and_reports_skipped_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = config(tmp_path, "a")
    folder = begin(run, "layout", 5, 10)
    checkpoint_path(folder, 10).write_bytes(b"")
    assert starting_checkpoint(run, "layout", "[2/3 layout]", speaks=True) == checkpoint_path(folder, 5)
    told = capsys.readouterr().err
    assert "step-00000010.ckpt does not read back whole (File is not a zip file) and is skipped" in told
    assert f"resumes from {checkpoint_path(folder, 5)}" in told
    assert starting_checkpoint(run, "refine", "[3/3 refine]", speaks=False) is None
    assert capsys.readouterr().err == ""


def test_damaged_checkpoints_do_not_count_among_those_kept(tmp_path: Path) -> None:
    run = config(tmp_path, "a")
    folder = begin(run, "layout", 5, 10, 15)
    for step in (10, 15):
        checkpoint_path(folder, step).write_bytes(b"")
    assert starting_checkpoint(run, "layout", "", speaks=False) == checkpoint_path(folder, 5)  # another rank, before
    starting_checkpoint(run, "layout", "", speaks=True)
    writer = CheckpointWriter(keep_last=2, keep_every_steps=0, background=False)
    for step in (6, 7):
        writer.save_checkpoint({"state_dict": {}}, checkpoint_path(folder, step))
    assert [step_of(path) for path in list_checkpoints(folder)] == [6, 7]
    assert sorted(path.name for path in folder.glob("*.damaged")) == [
        "step-00000010.ckpt.damaged",
        "step-00000015.ckpt.damaged",
    ]


def test_a_stage_with_only_damaged_checkpoints_is_an_error(tmp_path: Path) -> None:
    run = config(tmp_path, "a")
    folder = begin(run, "layout", 5, 10)
    for path in list_checkpoints(folder):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the checkpoints in .* reads back whole \(step-00000010.*remove them"):
        starting_checkpoint(run, "layout", "[2/3 layout]", speaks=True)
    assert len(list_checkpoints(folder)) == 2


def test_none_refuses_a_directory_that_holds_a_run(tmp_path: Path) -> None:
    check_run_directory(config(tmp_path, "a", "resume=none"))
    begin(config(tmp_path, "a"), "layout", 5)
    check_run_directory(config(tmp_path, "a"))
    with pytest.raises(UserError, match=r"holds a run already, and resume is none; give name=\.\.\."):
        check_run_directory(config(tmp_path, "a", "resume=none"))


def test_differing_options_are_named_and_free_ones_are_not(tmp_path: Path) -> None:
    begin(config(tmp_path, "a"), "layout", 5)
    check_run_directory(config(tmp_path, "a", "trainer.checkpoint_every_steps=7", "sample.steps=3"))
    changed = ["seed=3", "layout.unet.block_channels=[64]", "trainer.precision=bf16-mixed"]
    with pytest.raises(UserError) as error:
        check_run_directory(config(tmp_path, "a", *changed))
    for said in (
        "seed: 0 -> 3",
        "layout.unet.block_channels: [",
        "-> [64]",
        "trainer.precision: 32-true -> bf16-mixed",
    ):
        assert said in str(error.value)


def test_many_differences_are_shortened(tmp_path: Path) -> None:
    begin(config(tmp_path, "a"), "layout", 5)
    changed = [f"train.{stage}.{key}=7" for stage in ORDER for key in ("steps", "learning_rate", "warmup_steps")]
    changed += ["lora={rank: 3}", "data.trigger_word=" + 100 * "long"]
    with pytest.raises(UserError) as error:
        check_run_directory(config(tmp_path, "a", *changed))
    told = str(error.value)
    assert "lora: none -> given" in told and "lora.rank" not in told
    assert all(option.partition("=")[0] in told for option in changed)
    assert "Keep these as they were to continue it" in told
    assert len(told.replace(str(tmp_path), "")) < 700
    assert len(listed([f"option.{number}: 0 -> 1" for number in range(100)])) < 700


def test_free_options_may_change_within_a_run(tmp_path: Path) -> None:
    assert freely_changed(config(tmp_path, "a", "trainer.compile=blocks")) == []  # a new run
    begin(config(tmp_path, "a"), "layout", 5)
    again = config(tmp_path, "a", "trainer.compile=blocks", "data.workers=3", "resume=auto")
    check_run_directory(again)
    assert freely_changed(again) == ["data.workers: 1 -> 3", "trainer.compile: none -> blocks"]


def test_a_new_run_begins_at_a_checkpoint_of_another_and_then_resumes_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = config(tmp_path, "old")
    path = checkpoint_path(begin(old, "layout", 5, 10), 5)
    new = config(tmp_path, "new", f"resume={path}", "train.layout.learning_rate=0.5")
    check_run_directory(new)
    assert checkpoint_of_another_run(new) == (path, "layout")
    assert finished_stage(new, "autoencoder", ORDER) == old.directory / "autoencoder"
    assert finished_stage(new, "layout", ORDER) is None
    assert finished_stage(new, "refine", ORDER) is None
    assert starting_checkpoint(new, "layout", "[2/3 layout]", speaks=True) == path
    assert "its config differs: train.layout.learning_rate: 0.001 -> 0.5" in capsys.readouterr().err
    assert starting_checkpoint(new, "refine", "", speaks=False) is None

    own = checkpoint_path(begin(new, "layout", 7), 7)
    check_run_directory(new)
    assert starting_checkpoint(new, "layout", "", speaks=False) == own  # a requeued job does not go back
    assert finished_stage(new, "autoencoder", ORDER) == new.directory / "autoencoder"


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        ("layout", "train.layout.steps=9", r"trained 10 steps, and train\.layout\.steps is 9"),
        ("layout", "train.layout.accumulate_batches=2", r"accumulate_batches: 1 -> 2"),
        ("layout", "train.layout.optimizer=adamw-8bit", "optimizer: adamw -> adamw-8bit"),
        ("refine", "data.batch_size=3", r"data\.batch_size: 64 -> 3"),
        ("refine", "data.max_aspect=2.0", r"data\.max_aspect: 1\.0 -> 2\.0"),
        ("refine", "data.resolutions=[64,128]", r"data\.resolutions: \[\] -> \[64, 128\]"),
        ("layout", "train.refine.steps=9", None),
        ("layout", "train.refine.accumulate_batches=2", None),
        ("layout", "train.layout.steps=10", None),
        ("layout", "data.workers=0", None),
    ],
)
def test_a_checkpoint_s_place_under_other_options_is_refused_before_training(
    stage: str, change: str, message: str | None, tmp_path: Path
) -> None:
    path = checkpoint_path(begin(config(tmp_path, "old"), stage, 10), 10)
    new = config(tmp_path, "new", f"resume={path}", change)
    if message is None:
        check_run_directory(new)
        return
    with pytest.raises(UserError, match=message):
        check_run_directory(new)


def test_wrong_checkpoints_to_begin_from_are_refused(tmp_path: Path) -> None:
    run = config(tmp_path, "a")
    folder = begin(run, "layout", 5)
    with pytest.raises(UserError, match=rf"no checkpoint at {tmp_path}/none; name a file, auto or none"):
        check_run_directory(config(tmp_path, "b", f"resume={tmp_path}/none"))
    with pytest.raises(UserError, match=r"name a file, such as .*step-00000005\.ckpt"):
        check_run_directory(config(tmp_path, "b", f"resume={run.directory}"))
    with pytest.raises(UserError, match="of this very run"):
        check_run_directory(dataclasses.replace(run, resume=str(checkpoint_path(folder, 5))))
    checkpoint_path(folder, 5).write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        check_run_directory(config(tmp_path, "b", f"resume={checkpoint_path(folder, 5)}"))
    write_checkpoint({"state_dict": {}, "run": config_record(run, "layout")}, checkpoint_path(folder, 5))
    (run.directory / "autoencoder" / "trained.safetensors").unlink()
    with pytest.raises(UserError, match="comes after the stage autoencoder, but"):
        finished_stage(config(tmp_path, "b", f"resume={checkpoint_path(folder, 5)}"), "autoencoder", ORDER)


def test_options_of_version_0_1_are_compared_under_their_new_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = config(tmp_path, "a")
    folder = begin(run, "layout")
    record = json.loads(config_record(run, "layout")["config"])
    record["data"]["picture_pixels"] = record["data"].pop("image_pixels")
    content = {"state_dict": {}, "run": {"stage": "layout", "config": json.dumps(record)}}
    write_checkpoint(content, checkpoint_path(folder, 5))
    assert starting_checkpoint(run, "layout", "", speaks=True) == checkpoint_path(folder, 5)
    assert "differs" not in capsys.readouterr().err


def test_a_checkpoint_that_lies_alone_is_refused(tmp_path: Path) -> None:
    path = checkpoint_path(begin(config(tmp_path, "old"), "layout", 5), 5)
    alone = tmp_path / "alone" / path.name
    alone.parent.mkdir()
    path.rename(alone)
    with pytest.raises(UserError, match="name the checkpoint inside its run directory"):
        finished_stage(config(tmp_path, "new", f"resume={alone}"), "autoencoder", ORDER)
    other = alone.rename(tmp_path / "mine.ckpt")
    with pytest.raises(UserError, match="is not named as a checkpoint is"):
        check_run_directory(config(tmp_path, "new", f"resume={other}"))


@pytest.mark.parametrize("record", [None, 3, [], {"stage": 3}, {"stage": ["layout"], "config": 3}])
def test_a_checkpoint_with_another_record_is_refused(tmp_path: Path, record: object) -> None:
    path = checkpoint_path(tmp_path, 5)
    write_checkpoint({"state_dict": {}, "run": record}, path)
    with pytest.raises(UserError, match="does not say which stage"):
        check_run_directory(config(tmp_path, "new", f"resume={path}"))
