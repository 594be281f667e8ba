"""Where a run starts from: auto, none, or a checkpoint of another run; and what it says when configs differ."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from vlad.config import Config, load_config, save_config
from vlad.errors import UserError
from vlad.resuming import (
    check_run_directory,
    checkpoint_of_another_run,
    config_record,
    finished_stage,
    starting_checkpoint,
)
from vlad.training.checkpoint import checkpoint_path, write_checkpoint

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


def test_auto_takes_the_newest_valid_one_and_says_what_it_left_out_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = config(tmp_path, "a")
    folder = begin(run, "layout", 5, 10)
    checkpoint_path(folder, 10).write_bytes(b"")
    assert starting_checkpoint(run, "layout", "[2/3 layout]", speaks=True) == checkpoint_path(folder, 5)
    told = capsys.readouterr().err
    assert "step-00000010.ckpt does not read back whole (File is not a zip file) and is left out" in told
    assert f"goes on from {checkpoint_path(folder, 5)}" in told
    assert starting_checkpoint(run, "refine", "[3/3 refine]", speaks=False) is None
    assert capsys.readouterr().err == ""


def test_none_refuses_a_directory_that_holds_a_run(tmp_path: Path) -> None:
    check_run_directory(config(tmp_path, "a", "resume=none"))
    begin(config(tmp_path, "a"), "layout", 5)
    check_run_directory(config(tmp_path, "a"))
    with pytest.raises(UserError, match=r"holds a run already, and resume is none; give name=\.\.\."):
        check_run_directory(config(tmp_path, "a", "resume=none"))


def test_every_option_that_differs_is_named_and_those_that_do_not_matter_are_not(tmp_path: Path) -> None:
    begin(config(tmp_path, "a"), "layout", 5)
    check_run_directory(config(tmp_path, "a", "trainer.checkpoint_every_steps=7", "sample.steps=3"))
    changed = ["seed=3", "layout.unet.block_channels=[64]", "trainer.precision=bf16-mixed"]
    with pytest.raises(UserError) as error:
        check_run_directory(config(tmp_path, "a", *changed))
    for said in (
        "seed was 0 and is now 3",
        "layout.unet.block_channels was ",
        "is now [64]",
        "trainer.precision was '32",
    ):
        assert said in str(error.value)


def test_a_new_run_begins_at_a_checkpoint_of_another_and_then_goes_on_by_itself(
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
    assert "its config differs: train.layout.learning_rate was 0.001 and is now 0.5" in capsys.readouterr().err
    assert starting_checkpoint(new, "refine", "", speaks=False) is None

    own = checkpoint_path(begin(new, "layout", 7), 7)
    check_run_directory(new)
    assert starting_checkpoint(new, "layout", "", speaks=False) == own  # a requeued job does not go back
    assert finished_stage(new, "autoencoder", ORDER) == new.directory / "autoencoder"


def test_what_cannot_be_begun_from_is_refused_with_the_remedy(tmp_path: Path) -> None:
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
