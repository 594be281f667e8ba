"""The small world that trainers in processes of their own are tried on."""

from pathlib import Path

import pytest
from trainer_process import CONFIG, Orders, finish, start

from vlad.data.options import SyntheticOptions
from vlad.data.shards.writer import write_manifest, write_shards
from vlad.data.signs import render_sign


@pytest.fixture(scope="session")
def signs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards of 64 signs and a config, nothing trained."""
    folder = tmp_path_factory.mktemp("signs")
    options = SyntheticOptions(size_pixels=32, count=64)
    (folder / "shards").mkdir()
    entries = write_shards((render_sign(options, i) for i in range(options.count)), folder / "shards", 16)
    write_manifest(folder / "shards", entries, {})
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def straight(signs: Path) -> Path:
    """The run directory of that config, trained straight through; SIGNS/straight.0 records its batches."""
    orders = Orders(record=signs / "straight.jsonl")
    processes = start(signs / "config.yaml", signs / "straight-words", ["name=straight", "trainer.devices=1"], orders)
    assert finish(processes) == [0], (signs / "straight-words.0").read_text()
    return signs / "runs" / "straight"
