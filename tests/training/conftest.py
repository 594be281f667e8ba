"""The small world that trainers in processes of their own are tried on."""

from pathlib import Path

import pytest
from trainer_process import CONFIG

from vlad.data.synthetic import SyntheticOptions, render_sign
from vlad.data.writing import write_manifest, write_shards


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
