"""Faults: kills, signals, lost ranks, losses that are not finite."""

from __future__ import annotations

import json
import random
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trainer_process import CONTEXT, Orders, finish, start

from vlad.training.callbacks.rank_watch import RankWatch
from vlad.training.checkpoint import list_checkpoints
from vlad.training.fit_stage import _fit

STAGES = ("autoencoder", "layout", "refine")
SEEDS = {5: 0, 32: 1}  # of the instants, by the number of kills


@pytest.mark.parametrize("kills", [5, pytest.param(32, marks=pytest.mark.long)])
def test_killed_at_any_instant_a_run_ends_with_the_same_weights(
    signs: Path, straight: Path, tmp_path: Path, kills: int
) -> None:
    draw = random.Random(SEEDS[kills])
    config, words = signs / "config.yaml", tmp_path / "words"
    # A checkpoint every step, so that many instants are within a save; fsync and replace: before, while and after a
    # file gets its name.
    overrides = ["name=killed", f"runs={tmp_path}", "trainer.devices=1"]
    overrides += ["trainer.checkpoint_every_steps=1", "trainer.keep_every_steps=0"]
    killed = 0
    while killed < kills:
        at = (draw.choice(["fsync", "replace"]), draw.randint(1, 4)) if killed % 2 == 0 else None
        (process,) = start(config, words, overrides, Orders(kill_at=at))
        process.join(60 if at else draw.uniform(0.5, 6))
        if process.is_alive():
            process.kill()
            process.join()
        assert process.exitcode in (0, -signal.SIGKILL), words.with_suffix(".0").read_text()
        killed += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:  # the end was reached before all kills were spent: once more from the beginning
            assert_same_weights(straight, tmp_path / "killed")
            (tmp_path / "killed").rename(tmp_path / f"finished-{killed}")
    assert finish(start(config, words, overrides, Orders())) == [0], words.with_suffix(".0").read_text()

    assert_same_weights(straight, tmp_path / "killed")
    assert not list((tmp_path / "killed").rglob("*.partial"))


def assert_same_weights(one: Path, two: Path) -> None:
    for stage in STAGES:
        before, after = (load_file(run / stage / "trained.safetensors") for run in (one, two))
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_signals_of_schedulers_and_ctrl_c_save_and_end_with_exit_code_0(signs: Path, tmp_path: Path) -> None:
    overrides = ["name=signals", f"runs={tmp_path}", "trainer.devices=1"]
    for step, number in enumerate((signal.SIGHUP, signal.SIGUSR1, signal.SIGINT), start=1):
        words = tmp_path / f"words-{step}"
        orders = Orders(send=("autoencoder", step, 0, number))
        assert finish(start(signs / "config.yaml", words, overrides, orders)) == [0]
        told = words.with_suffix(".0").read_text()
        command = shlex.join(["train.py", str(signs / "config.yaml"), *overrides])
        assert f"Stopped and saved. The same command goes on: python {command}\n" in told
        newest = list_checkpoints(tmp_path / "signals" / "autoencoder" / "checkpoints")[-1]
        assert newest.name == f"step-{step:08d}.ckpt"


def test_a_second_ctrl_c_is_an_interruption() -> None:
    class Interrupted:
        def __init__(self, error: type[BaseException]) -> None:
            self.error = error

        def fit(self, *_: object, **__: object) -> None:
            try:
                raise self.error
            except self.error:
                sys.exit(1)

    with pytest.raises(KeyboardInterrupt):
        _fit(Interrupted(KeyboardInterrupt), None, None, None)  # type: ignore[arg-type]
    with pytest.raises(SystemExit):
        _fit(Interrupted(RuntimeError), None, None, None)  # type: ignore[arg-type]


def test_one_rank_s_signal_stops_all_and_a_killed_rank_ends_the_run_with_one_message(
    signs: Path, tmp_path: Path
) -> None:
    overrides = ["name=lost", f"runs={tmp_path}", "trainer.devices=2", "trainer.checkpoint_every_steps=100"]
    overrides += ["trainer.keep_every_steps=0"]
    orders = Orders(send=("autoencoder", 1, 1, signal.SIGTERM))
    assert finish(start(signs / "config.yaml", tmp_path / "stopped", overrides, orders, ranks=2)) == [0, 0]
    told = (tmp_path / "stopped.0").read_text() + (tmp_path / "stopped.1").read_text()
    assert told.count("Stopped and saved. The same torchrun command goes on.\n") == 1
    (saved,) = list_checkpoints(tmp_path / "lost" / "autoencoder" / "checkpoints")
    assert saved.name == "step-00000001.ckpt"

    orders = Orders(send=("autoencoder", 2, 1, signal.SIGKILL))
    # Where rank 0 hung until the ten minutes of trainer.timeout_minutes, its code would be None: two are waited for.
    codes = finish(start(signs / "config.yaml", tmp_path / "words", overrides, orders, ranks=2))
    assert codes == [1, -signal.SIGKILL]
    told = (tmp_path / "words.0").read_text() + (tmp_path / "words.1").read_text()
    assert told.count("error: ") == 1
    assert "another rank no longer answers rank 0" in told
    assert "resumes from the last checkpoint" in told
    assert "Traceback" not in told
    assert list_checkpoints(tmp_path / "lost" / "autoencoder" / "checkpoints")


def watch_a_child(folder: Path, words: Path) -> None:
    """Rank 0 as Lightning starts one: with a child, which is killed."""
    with words.open("w") as sys.stderr:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        watch = RankWatch(folder, before_end=lambda: print("saved", file=sys.stderr, flush=True))
        watch.rank = 0
        child.kill()
        watch._watch(parent=-1, children=[child])


def test_rank_0_names_the_child_that_was_lost(tmp_path: Path) -> None:
    process = CONTEXT.Process(target=watch_a_child, args=(tmp_path, tmp_path / "words"))
    process.start()
    assert finish([process], 60) == [1]
    told = (tmp_path / "words").read_text()
    assert "error: rank 1 of this machine (process " in told
    assert "has been killed by SIGKILL" in told
    assert told.endswith("saved\n")


def test_a_nonfinite_loss_is_kept_and_stops_the_run_or_is_skipped(signs: Path, tmp_path: Path) -> None:
    overrides = ["name=nan", f"runs={tmp_path}", "trainer.devices=2", "trainer.checkpoint_every_steps=1"]
    overrides += ["trainer.keep_every_steps=0"]
    orders = Orders({"autoencoder": 2}, tmp_path / "batches.jsonl", nan_at=("autoencoder", 1, 1))

    processes = start(signs / "config.yaml", tmp_path / "stop", overrides, orders, ranks=2)
    assert finish(processes) == [2, 2]
    told = (tmp_path / "stop.0").read_text()
    assert told.count("error: the loss of step 1 is not a finite number: nan on rank 1 in batch 1") == 1
    assert "error:" not in (tmp_path / "stop.1").read_text()
    (about,) = (tmp_path / "nan" / "autoencoder" / "nonfinite").glob("*.json")
    record = json.loads(about.read_text())
    assert (record["rank"], record["batch"], record["loss"], record["step"]) == (1, 1, "nan", 1)
    assert ", ".join(record["keys"]) in told
    assert len(record["captions"]) == 4
    assert load_file(about.with_suffix(".safetensors"))["image_bytes"].shape == (4, 3, 32, 32)
    assert len(list_checkpoints(tmp_path / "nan" / "autoencoder" / "checkpoints")) == 1

    overrides.append("trainer.on_nonfinite=skip")
    processes = start(signs / "config.yaml", tmp_path / "skip", overrides, orders, ranks=2)
    assert finish(processes) == [0, 0], (tmp_path / "skip.0").read_text()
    told = (tmp_path / "skip.0").read_text()
    assert told.count("warning: the loss of step 1 is not a finite number: nan on rank 1") == 1
    checkpoints = list_checkpoints(tmp_path / "nan" / "autoencoder" / "checkpoints")
    before, after = (torch.load(path, weights_only=True) for path in checkpoints)
    assert before["global_step"], after["global_step"] == (2, 3)
    guard = next(state for name, state in after["callbacks"].items() if name == "GradientGuard")
    assert guard == {"skipped": 1}
    assert all(value.isfinite().all() for value in after["state_dict"].values())
    # The record: rank 1's next batch is the one after, as if nothing had been left out.
    keys = [json.loads(line)["keys"] for line in (tmp_path / "batches.1").read_text().splitlines()]
    assert keys[-2] == record["keys"]
    assert keys[-1] != record["keys"]
