"""A run that is stopped in every stage and resumed equals one that went straight through, bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from trainer_process import Orders, finish, start

from vlad.training.checkpoint import read_checkpoint

STAGES = ("autoencoder", "layout", "refine")


def trained(signs: Path, folder: Path, name: str, ranks: int, steps: int, *starts: dict[str, int]) -> Path:
    """Trains to the end over several starts, each stopped at its batch; returns the run directory."""
    overrides = [f"name={name}", f"runs={folder / 'runs'}", f"trainer.devices={ranks}"]
    overrides += [f"train.{stage}.steps={steps}" for stage in STAGES] + [f"trainer.keep_every_steps={steps}"]
    for number, stop_at in enumerate(starts):
        words = folder / f"{name}-{number}"
        orders = Orders(stop_at, folder / f"{name}.jsonl")
        processes = start(signs / "config.yaml", words, overrides, orders, ranks)
        assert finish(processes, 900) == [0] * ranks, words.with_suffix(".0").read_text()
    return folder / "runs" / name


def batches(run: Path, ranks: int) -> list[list[dict[str, Any]]]:
    """What was recorded of every batch, rank by rank."""
    records = [run.parent.parent / f"{run.name}.{rank}" for rank in range(ranks)]
    return [[json.loads(line) for line in record.read_text().splitlines()] for record in records]


def flat(content: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts and lists by path."""
    if isinstance(content, dict):
        return {k: v for key, value in content.items() for k, v in flat(value, f"{name}/{key}").items()}
    if isinstance(content, list | tuple):
        return {k: v for key, value in enumerate(content) for k, v in flat(value, f"{name}/{key}").items()}
    return {name: content}


# With an average, accumulated batches (twice as many as steps but for the autoencoder), droppings and two loader's
# workers a rank; some stops are in the midst of a step.
@pytest.mark.parametrize(
    ("ranks", "steps", "stops"),
    [
        (1, 4, ({"autoencoder": 1}, {"layout": 2}, {"refine": 5})),
        (2, 4, ({"layout": 2},)),
        pytest.param(1, 100, ({"autoencoder": 49}, {"layout": 98}, {"refine": 99}), marks=pytest.mark.long),
        pytest.param(2, 100, ({"autoencoder": 49}, {"layout": 98}, {"refine": 99}), marks=pytest.mark.long),
    ],
)
def test_stopped_and_resumed_equals_straight_through(
    signs: Path, straight: Path, tmp_path: Path, ranks: int, steps: int, stops: tuple[dict[str, int], ...]
) -> None:
    known = (ranks, steps) == (1, 4)
    straight_run = straight if known else trained(signs, tmp_path, "straight", ranks, steps, {})
    resumed_run = trained(signs, tmp_path, "resumed", ranks, steps, *stops, {})

    one, two = batches(straight_run, ranks), batches(resumed_run, ranks)
    assert one == two  # every batch's keys and loss, to the last bit
    assert [line["stage"] for line in one[0]] == ["autoencoder"] * steps + ["layout"] * 2 * steps + [
        "refine"
    ] * 2 * steps
    first_keys = [{key for line in of_rank[:4] for key in line["keys"]} for of_rank in one]
    assert ranks == 1 or not first_keys[0] & first_keys[1]
    for stage in STAGES:
        # The last checkpoint, kept by trainer.keep_every_steps: weights, average, moments, schedule, place.
        before, after = (
            flat(read_checkpoint(run / stage / "checkpoints" / f"step-{steps:08d}.ckpt"))
            for run in (straight_run, resumed_run)
        )
        assert before.keys() == after.keys()
        tensors = {name for name, value in before.items() if isinstance(value, Tensor)}
        assert any("average" in name for name in tensors)
        assert any("exp_avg_sq" in name for name in tensors)
        differing = [name for name in tensors if not torch.equal(before[name], after[name])]
        differing += [name for name in before.keys() - tensors if before[name] != after[name]]
        # The run's name stands in the config. Sums of losses are only shown.
        assert [name for name in differing if name != "/run/config" and "/callbacks/Progress" not in name] == []


def test_two_ranks_learn_what_one_process_with_the_whole_batch_learns(
    signs: Path, straight: Path, tmp_path: Path
) -> None:
    curves = []
    for ranks in (1, 2):
        orders = Orders(record=tmp_path / f"{ranks}.jsonl", whole_batch=8)
        overrides = [f"name=of-{ranks}", f"runs={tmp_path / 'runs'}", f"trainer.devices={ranks}", f"base={straight}"]
        overrides += ["train.layout.steps=20", "train.layout.accumulate_batches=1", "train.refine.steps=1"]
        overrides += [f"data.batch_size={8 // ranks}", "trainer.checkpoint_every_steps=100"]
        overrides += ["trainer.keep_every_steps=0", "train.refine.accumulate_batches=1"]
        processes = start(signs / "config.yaml", tmp_path / f"words-{ranks}", overrides, orders, ranks)
        assert finish(processes) == [0] * ranks, (tmp_path / f"words-{ranks}.0").read_text()
        records = [(tmp_path / f"{ranks}.{rank}").read_text().splitlines() for rank in range(ranks)]
        lines = [[json.loads(line) for line in record][:20] for record in records]
        curves.append([sum(float.fromhex(line["loss"]) for line in step) / ranks for step in zip(*lines, strict=True)])
        of_step = [sorted(key for line in step for key in line["keys"]) for step in zip(*lines, strict=True)]
        assert all(len(set(keys)) == 8 for keys in of_step)
    # L_align over the images of both ranks, L_diff the mean of their means: the same numbers but for rounding.
    assert curves[1] == pytest.approx(curves[0], rel=2e-4)
    assert max(curves[0]) > 1.1 * min(curves[0])
