"""Results that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from vlad.training.atomic_files import save_tensors, write_metrics


def test_results_are_flushed_to_the_disk_before_they_are_renamed(
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
