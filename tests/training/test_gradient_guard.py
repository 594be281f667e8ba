"""Skipped steps, and results that are flushed to the disk before their checkpoints are removed."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vlad.training.atomic_files import save_tensors, write_metrics
from vlad.training.callbacks import gradient_guard as gradients
from vlad.training.callbacks.gradient_guard import GradientGuard
from vlad.types import Batch
from vlad.utils.errors import UserError


def test_what_checkpoints_are_removed_for_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def flush(descriptor: int) -> None:
        done.append(f"flush {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        done.append(f"name {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", rename)
    save_tensors({"weight": torch.ones(2)}, tmp_path / "stage" / "trained.safetensors")
    write_metrics(tmp_path / "stage" / "metrics.json", {"loss": 1.0})
    assert done == [
        *("flush trained.partial", "name trained.safetensors", "flush stage"),
        *("flush metrics.partial", "name metrics.json", "flush stage"),
    ]


def test_a_run_that_only_leaves_steps_out_ends_and_fills_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gradients, "MOST_IN_A_ROW", 5)
    monkeypatch.setattr(gradients, "MOST_KEPT", 3)
    guard = GradientGuard(tmp_path / "nonfinite", 1.0, "skip")
    trainer: Any = SimpleNamespace(global_step=0, global_rank=0, is_global_zero=True, precision="32-true")
    trainer.accumulate_grad_batches = 1
    trainer.fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=0))
    trainer.strategy = SimpleNamespace(reduce_boolean_decision=lambda decision: decision)
    module: Any = SimpleNamespace(log=lambda *_: None)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    batch = Batch(("sign-7",), ("a sign",), (), (), torch.zeros(1, 3, 2, 2, dtype=torch.uint8), None, None)

    def step(loss: float) -> None:
        guard.on_train_batch_start(trainer, module, batch)
        guard.on_before_backward(trainer, module, torch.tensor(loss))
        weight.grad = torch.full((1,), loss)
        guard.on_before_optimizer_step(trainer, module, optimizer)
        trainer.global_step += 1
        trainer.fit_loop.epoch_loop.total_batch_idx += 1

    for loss in (*4 * [torch.nan], 1.0, *4 * [torch.nan]):
        step(loss)
    assert guard.skipped == 8
    assert len(list((tmp_path / "nonfinite").glob("*.safetensors"))) == 3
    told = capsys.readouterr().err
    assert told.count("(not written: 3 of this stage are)") == 5
    assert told.count("sign-7") == 8
    with pytest.raises(UserError, match="5 steps in a row were skipped, and nothing is learned any more"):
        step(torch.nan)
