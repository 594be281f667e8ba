"""The quarantine lists a bad sample once, whichever process meets it and however often."""

import json
from pathlib import Path

import pytest

from vlad.data.quarantine import Quarantine
from vlad.data.storage.retries import StorageError


def listed(path):
    return [json.loads(line)["key"] for line in path.read_text().splitlines()]


def test_two_processes_list_a_sample_once(tmp_path):
    """Each has its own object; what one adds the other reads before it adds."""
    path = tmp_path / "quarantine.jsonl"
    first, second = Quarantine(path), Quarantine(path)
    for quarantine, key in ((first, "a"), (second, "a"), (second, "b"), (first, "b"), (first, "c"), (second, "a")):
        quarantine.add(key, "0.tar", "no image")
    assert listed(path) == ["a", "b", "c"]
    Quarantine(path).add("b", "0.tar", "no image")  # a resumed run
    Quarantine(path).add("b", "0.tar", "no json")
    assert listed(path) == ["a", "b", "c", "b"]


def test_a_long_list_is_not_read_again_for_each_sample(tmp_path, monkeypatch):
    path = tmp_path / "quarantine.jsonl"
    quarantine, read = Quarantine(path), []
    plain = Path.open

    class Counted:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *ended):
            self.stream.close()

        def __getattr__(self, name):
            return getattr(self.stream, name)

        def read(self):
            data = self.stream.read()
            read.append(len(data))
            return data

    monkeypatch.setattr(Path, "open", lambda self, mode: Counted(plain(self, mode)))
    for number in range(100):
        quarantine.add(str(number), "0.tar", "no image")
    assert max(read) < 100
    monkeypatch.undo()
    assert len(listed(path)) == 100


def test_keys_that_are_not_utf8_are_listed(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    for _ in range(2):
        Quarantine(path).add("a\udcff", "0.tar", "no\nimage")
    assert len(path.read_bytes().splitlines()) == 1


def test_an_unwritable_quarantine_is_reported(tmp_path):
    with pytest.raises(StorageError, match=r"none/q\.jsonl cannot be written \(No such file"):
        Quarantine(tmp_path / "none" / "q.jsonl").add("a", "0.tar", "x")
