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


def trained(signs: Path, tmp_path: Path, name: str, ranks: int, *starts: dict[str, int]) -> tuple[list[Any], Path]:
    """Trains to the end over several starts, each stopped where it says; the batches of all ranks, and the run."""
    for number, stop_at in enumerate(starts):
        orders = Orders(stop_at, tmp_path / f"{name}.jsonl")
        overrides = [f"name={name}", f"runs={tmp_path}", f"trainer.devices={ranks}"]
        processes = start(signs / "config.yaml", tmp_path / f"{name}-{number}", overrides, orders, ranks)
        assert finish(processes) == [0] * ranks, (tmp_path / f"{name}-{number}.0").read_text()
    lines = [(tmp_path / f"{name}.{rank}").read_text().splitlines() for rank in range(ranks)]
    return [[json.loads(line) for line in of_rank] for of_rank in lines], tmp_path / name


def flat(content: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts and lists by path."""
    if isinstance(content, dict):
        return {k: v for key, value in content.items() for k, v in flat(value, f"{name}/{key}").items()}
    if isinstance(content, list | tuple):
        return {k: v for key, value in enumerate(content) for k, v in flat(value, f"{name}/{key}").items()}
    return {name: content}


@pytest.mark.parametrize("ranks", [1, 2])
def test_stopped_and_resumed_in_every_stage_equals_straight_through(signs: Path, tmp_path: Path, ranks: int) -> None:
    # With an average, accumulated batches, droppings and two loader's workers a rank.
    straight, straight_run = trained(signs, tmp_path, "straight", ranks, {})
    stops = ({"autoencoder": 2}, {"layout": 2}, {"refine": 2}, {})
    resumed, resumed_run = trained(signs, tmp_path, "resumed", ranks, *stops)

    assert straight == resumed  # every batch's keys and loss, to the last bit
    assert [line["stage"] for line in straight[0]] == ["autoencoder"] * 4 + ["layout"] * 8 + ["refine"] * 8
    if ranks == 2:
        assert not {key for line in straight[0][:4] for key in line["keys"]} & {
            key for line in straight[1][:4] for key in line["keys"]
        }
    for stage in STAGES:
        # The last checkpoint, kept by trainer.keep_every_steps: weights, average, moments, schedule, place.
        one, two = (
            flat(read_checkpoint(run / stage / "checkpoints" / "step-00000004.ckpt"))
            for run in (straight_run, resumed_run)
        )
        assert one.keys() == two.keys()
        tensors = {name for name, value in one.items() if isinstance(value, Tensor)}
        assert any("average" in name for name in tensors)
        assert any("exp_avg_sq" in name for name in tensors)
        differing = [name for name in tensors if not torch.equal(one[name], two[name])]
        differing += [name for name in one.keys() - tensors if "/loops" not in name and one[name] != two[name]]
        assert differing in ([], ["/run/config"])  # the run's name stands in it
