"""`validate`: what a run cannot do here is refused before any long work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlad.config.load import load_config
from vlad.training.validate import check_machine
from vlad.utils.errors import UserError


def test_more_processes_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text("trainer: {devices: 4}")
    check_machine(load_config(tmp_path / "a.yaml", ["trainer.accelerator=cpu"]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_machine(load_config(tmp_path / "a.yaml", ["trainer.devices=auto"]))
    check_machine(load_config(tmp_path / "a.yaml", ["trainer.accelerator=cpu"]))
    with pytest.raises(UserError, match=r"trainer\.devices is 4, and torch finds 2 GPUs here"):
        check_machine(load_config(tmp_path / "a.yaml"))
