"""Results that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from vlad.utils.atomic_files import replaced_directory, save_tensors, write_json


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
    write_json(tmp_path / "stage" / "metrics.json", {"loss": 1.0})
    assert done == [
        *("flush trained.safetensors.partial", "name trained.safetensors", "flush stage"),
        *("flush metrics.json.partial", "name metrics.json", "flush stage"),
    ]


def test_a_directory_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    directory = tmp_path / "pipeline"
    for content in ("one", "two"):
        with replaced_directory(directory) as partial:
            (partial / "part").mkdir()
            (partial / "part" / "model_index.json").write_text(content)
            (partial / f"of-{content}").write_text("")
        assert (directory / "part" / "model_index.json").read_text() == content
    assert not (directory / "of-one").exists()

    class Killed(BaseException):
        pass

    def fill() -> None:
        with replaced_directory(directory) as partial:
            (partial / "model_index.json").write_text("")
            raise Killed

    with pytest.raises(Killed):
        fill()
    assert (directory / "part" / "model_index.json").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]
