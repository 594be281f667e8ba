"""Checkpoint files: whole or absent, read back before they are published, found again past damaged ones."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import threading
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vlad.training.callbacks.checkpointing import CheckpointWriter
from vlad.training.checkpoint import (
    checkpoint_path,
    list_checkpoints,
    newest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    remove_partial,
    write_checkpoint,
    write_part,
)
from vlad.utils.errors import UserError


def state(step: int) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((64, 64), float(step))}, "global_step": step, "names": ["a", ("b", 1)]}


def write(directory: Path, *steps: int) -> list[Path]:
    paths = [checkpoint_path(directory, step) for step in steps]
    for step, path in zip(steps, paths, strict=True):
        write_checkpoint(state(step), path)
    return paths


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 3)
    content = read_checkpoint(path)
    assert torch.equal(content.pop("state_dict")["weight"], state(3)["state_dict"]["weight"])
    assert content == {"global_step": 3, "names": ["a", ("b", 1)]}
    assert list(tmp_path.iterdir()) == [path]


class Malicious:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (os.mkdir, ("was-run",))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(torch.tensor(6.0).numpy().tobytes() * 8) + 100] ^= 1  # among the weights
    path.write_bytes(content)


def hide_code(path: Path) -> None:
    torch.save({"state_dict": Malicious()}, path)


DAMAGES = {
    "truncated": truncate,
    "bit-flipped": flip_a_bit,
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "something else": lambda path: torch.save({"weight": torch.ones(2)}, path),
    "plain pickle": lambda path: path.write_bytes(pickle.dumps(Malicious())),
    "code": hide_code,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.chdir(tmp_path)
    _, before, newest = write(tmp_path, 2, 4, 6)
    DAMAGES[damage](newest)

    found, left_out = newest_checkpoint(tmp_path)

    assert found == before
    assert [broken.path for broken in left_out] == [newest]
    assert left_out[0].reason
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(newest)
    assert not (tmp_path / "was-run").exists()
    DAMAGES[damage](before) if damage != "bit-flipped" else before.write_bytes(b"")
    assert newest_checkpoint(tmp_path)[0] == checkpoint_path(tmp_path, 2)


def test_no_flipped_bit_changes_what_is_read(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 6)
    good = path.read_bytes()
    refused = 0
    for place in range(0, len(good), 211):
        flipped = bytearray(good)
        flipped[place] ^= 0x10
        path.write_bytes(flipped)
        try:
            content = read_checkpoint(path)
        except UserError:
            refused += 1
            continue
        assert torch.equal(content["state_dict"]["weight"], state(6)["state_dict"]["weight"])  # padding, dates
        assert content["global_step"] == 6
    assert refused > 60


def test_a_failed_write_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (before,) = write(tmp_path, 2)
    usage = namedtuple("usage", ["total", "used", "free"])
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 500_000))
        patch.setattr(torch, "save", lambda *_: pytest.fail("a write was begun that cannot end"))
        with pytest.raises(OSError, match=r"0 MB are free and the checkpoint takes 1"):
            write(tmp_path, 4)

    def damaging(file: int) -> None:  # a disk that does not keep what it was given
        os.pwrite(file, b"\0" * 50, 300)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", damaging)
        with pytest.raises(UserError, match="cannot be read"):
            write(tmp_path, 4)
    assert list(tmp_path.iterdir()) == [before]


def test_the_newest_and_every_nth_checkpoint_are_kept(tmp_path: Path) -> None:
    write(tmp_path, *range(2, 22, 2))
    (tmp_path / "step-00000022.ckpt.partial").write_bytes(b"what a killed run has left")
    (tmp_path / "notes.ckpt").write_bytes(b"not ours")
    prune_checkpoints(tmp_path, keep_last=2, keep_every_steps=6)
    assert [path.name[5:13] for path in list_checkpoints(tmp_path)] == ["00000006", "00000012", "00000018", "00000020"]
    prune_checkpoints(tmp_path, keep_last=1, keep_every_steps=0)
    remove_partial(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.ckpt", "step-00000020.ckpt"]


def test_a_hundred_million_steps_still_sort(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        checkpoint_path(tmp_path, step).touch()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-99999999.ckpt", "step-100000000.ckpt"]


@pytest.mark.parametrize("background", [True, False])
def test_a_writer_saves_the_state_of_its_instant_and_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    writer = CheckpointWriter(keep_last=9, keep_every_steps=0, background=background)
    may_write, writing = threading.Event(), []
    save = torch.save

    def slow_save(content: Any, stream: Any) -> None:
        writing.append(content["global_step"])
        assert may_write.wait(30)
        save(content, stream)

    monkeypatch.setattr(torch, "save", slow_save)
    content = state(2)
    if not background:
        may_write.set()
    writer.save_checkpoint(content, checkpoint_path(tmp_path, 2))
    content["state_dict"]["weight"].fill_(99)  # training goes on
    assert (list_checkpoints(tmp_path) == []) == background
    second = threading.Thread(target=writer.save_checkpoint, args=(state(4), checkpoint_path(tmp_path, 4)))
    second.start()
    if background:
        second.join(0.2)
        assert writing in ([], [2])  # the second waits for the first
        may_write.set()
    second.join(30)
    writer.wait()
    assert writing == [2, 4]
    assert writer.take_failure() is None
    for step in (2, 4):
        weight = read_checkpoint(checkpoint_path(tmp_path, step))["state_dict"]["weight"]
        assert torch.equal(weight, state(step)["state_dict"]["weight"])


@pytest.mark.parametrize("background", [True, False])
def test_a_failed_write_is_reported_once_and_the_next_is_written(tmp_path: Path, background: bool) -> None:
    writer = CheckpointWriter(keep_last=2, keep_every_steps=0, background=background)
    place = tmp_path / "checkpoints"
    place.write_text("a file where the directory should be")
    writer.save_checkpoint(state(2), checkpoint_path(place, 2))
    writer.wait()
    failed = writer.take_failure()
    assert failed is not None
    assert failed[0] == checkpoint_path(place, 2)
    assert isinstance(failed[1], OSError)
    assert writer.take_failure() is None
    place.unlink()
    writer.save_checkpoint(state(4), checkpoint_path(place, 4))
    writer.wait()
    assert writer.take_failure() is None
    assert [path.name for path in list_checkpoints(place)] == ["step-00000004.ckpt"]


def test_a_rank_that_cannot_write_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_both(step: int) -> list[Exception]:
        """What the two ranks of a sharded run raise when they write their parts."""
        raised: list[Exception] = []

        def write_own(rank: int) -> None:
            try:
                write_part({**state(step), "rank": rank}, checkpoint_path(tmp_path, step), rank, 2, 30)
            except OSError as error:
                raised.append(error)

        threads = [threading.Thread(target=write_own, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return raised

    save = torch.save

    def full_for_rank_1(content: Any, stream: Any) -> None:
        if content["rank"] == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, stream)

    assert write_both(2) == []
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_for_rank_1)
        raised = write_both(4)
    assert sorted(error.errno for error in raised if isinstance(error, OSError)) == [errno.EIO, errno.ENOSPC]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002.ckpt"]
    newest, left_out = newest_checkpoint(tmp_path)
    assert newest == checkpoint_path(tmp_path, 2)
    assert left_out == []


def test_a_checkpoint_of_fewer_ranks_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in (1, 0):
        write_part(state(2), checkpoint_path(tmp_path, 2), rank, 2, 30)
    monkeypatch.setattr("vlad.utils.distributed.launch_rank", lambda: 2)
    with pytest.raises(UserError, match="was written by 2 processes, and this run has another number"):
        newest_checkpoint(tmp_path)
