"""Steps whose loss or gradient is not finite are skipped, and their batches kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vlad.training.callbacks import gradient_guard as gradients
from vlad.training.callbacks.gradient_guard import GradientGuard
from vlad.types import Batch
from vlad.utils.errors import UserError


def test_a_run_that_only_skips_steps_ends_and_fills_no_disk(
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
