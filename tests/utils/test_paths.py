"""Checks of paths that a user names."""

import shutil
import tempfile
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vlad.utils.errors import UserError
from vlad.utils.paths import existing_file, writable_directory


def test_a_writable_directory_is_made_and_left_empty(tmp_path: Path) -> None:
    path = writable_directory(str(tmp_path / "runs" / "mine"), "the run", needed_bytes=1)

    assert path == tmp_path / "runs" / "mine"
    assert list(path.iterdir()) == []
    assert writable_directory(path, "the run") == path  # again


def test_a_file_in_the_way_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            UserError, match=rf"Cannot write the run to {path} \(.+\); name a directory you may write to"
        ):
            writable_directory(path, "the run")


def test_a_directory_without_write_access_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(UserError, match=r"Cannot write images to .* \(Permission denied\)"):
        writable_directory(tmp_path, "images")


def test_too_little_disk_space_is_reported_with_both_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 3_000_000))

    with pytest.raises(UserError, match="has 3 MB free, but shards needs about 5 MB; make room"):
        writable_directory(tmp_path, "shards", needed_bytes=5_000_000)
    assert writable_directory(tmp_path, "shards", needed_bytes=3_000_000) == tmp_path


def test_an_existing_file_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").touch()
    assert existing_file(str(tmp_path / "prompts.txt"), "prompt file", "write one") == tmp_path / "prompts.txt"
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=rf"There is no prompt file at {path}; write one\."):
            existing_file(path, "prompt file", "write one")


def test_two_threads_try_one_directory_without_a_refusal(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: writable_directory(tmp_path, "shards"), range(1000)))
    assert not list(tmp_path.iterdir())
