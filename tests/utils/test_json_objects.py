"""JSON files of any content: one kind of error, and none that keeps a run from its start."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from vlad.data.importers.journal import Journal
from vlad.eval.ablation.ablation_table import read_scores
from vlad.eval.held_out_words.evaluation_rows import HeldOutSet, stored_metrics
from vlad.inference.output_directory import OutputDirectory
from vlad.lora.adapter_files import adapter_base
from vlad.pipeline.folders import pipeline_class, read_pipeline
from vlad.reports.run_report import write_run_report
from vlad.reports.starts import changes_since_last_start, read_starts, record_start
from vlad.utils.errors import UserError
from vlad.utils.json_objects import parse_object, read_object

DAMAGED = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"3",
    b'"x"',
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"modes": 3, "image": 3, "loss": "x", "versions": 3, "_class_name": {}, "base_model_name_or_path": 3}',
]


def report(folder: Path, content: bytes) -> None:
    logs = folder / "refine" / "logs" / "from-step-00000000"
    logs.mkdir(parents=True)
    (logs / "metrics.csv").write_text("step,loss\n0,1\n")
    for file in ("refine/metrics.json", "starts.jsonl"):
        (folder / file).write_bytes(content)
    assert "done" in write_run_report(folder).read_text(encoding="utf-8")


def starts(folder: Path, content: bytes) -> None:
    (folder / "starts.jsonl").write_bytes(content)
    record_start(folder, {"python": "3"})
    assert read_starts(folder)[-1] == {"python": "3"}
    assert changes_since_last_start(folder, {"python": "4"}) == ["python: 3 -> 4"]


def index(folder: Path, content: bytes) -> None:
    (folder / "index.jsonl").write_bytes(content + b"\n")
    with OutputDirectory(folder, 0).open_index([]):
        pass
    assert (folder / "index.jsonl").read_bytes() == b""


def journal(folder: Path, content: bytes) -> None:
    (folder / "journal.jsonl").write_bytes(content)
    assert Journal(folder / "journal.jsonl").resume({"a": 1}) == {}


def metrics(folder: Path, content: bytes) -> None:
    (folder / "metrics.json").write_bytes(content)
    assert stored_metrics(folder / "metrics.json", HeldOutSet("words", 3, "x"), "engine", "w") == {}


@pytest.mark.parametrize("content", DAMAGED)
@pytest.mark.parametrize("use", [report, starts, index, journal, metrics])
def test_our_own_damaged_records_stop_nothing(
    use: Callable[[Path, bytes], None], content: bytes, tmp_path: Path
) -> None:
    use(tmp_path, content)


def pipeline(folder: Path) -> Any:
    return pipeline_class(folder), read_pipeline(folder, "it")


@pytest.mark.parametrize("content", DAMAGED)
@pytest.mark.parametrize(
    ("file", "read"),
    [
        ("model_index.json", pipeline),
        ("adapter_config.json", adapter_base),
        ("evaluation/metrics.json", read_scores),
    ],
)
def test_other_damaged_files_are_reported(
    file: str, read: Callable[[Path], Any], content: bytes, tmp_path: Path
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(content)
    with suppress(ValueError):
        if "base_model_name_or_path" in read_object(tmp_path / file) and read is adapter_base:
            return  # an id of any type is shown as text
    with pytest.raises(UserError, match=Path(file).name.partition(".")[0]):
        read(tmp_path)


def test_objects_are_read() -> None:
    assert parse_object('{"a": "\\u2028"}') == {"a": "\u2028"}
    for content in DAMAGED[:-1]:
        with pytest.raises(ValueError, match=r"."):
            parse_object(content)
    assert json.dumps(parse_object(b"{}")) == "{}"
