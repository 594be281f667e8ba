"""render_shards as a user calls it: signs are rendered once, anew for other options, and replace no other shards."""

import json
from pathlib import Path

import pytest

from vlad.cli.shards import RENDER
from vlad.data.shards.reader import index_shards

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "tiny.yaml"


@pytest.fixture
def render(monkeypatch, call_verb):
    """The tool in this process: overrides -> exit code, what it printed, what it complained of."""
    monkeypatch.setattr("vlad.data.render_shards.HELD_OUT_SAMPLES", 2)

    def run(*overrides, count=3):
        signs = (f"data.synthetic.count={count}", "data.synthetic.size_pixels=16")
        return call_verb(RENDER, CONFIG, *signs, *overrides)

    return run


def test_signs_are_rendered_once_and_anew_for_other_options(render, tmp_path):
    shards, held_out = tmp_path / "signs", tmp_path / "held"
    assert render(f"data.shards={shards}", f"data.held_out={held_out}")[0] == 0
    assert (index_shards(str(shards)).samples, index_shards(str(held_out)).samples) == (3, 2)
    code, said, _ = render(f"data.shards={shards}", f"data.held_out={held_out}")
    assert (code, "holds these 3 signs already" in said) == (0, True)
    assert render(f"data.shards={shards}", count=4)[0] == 0
    assert index_shards(str(shards)).samples == 4


@pytest.mark.parametrize("manifest", ["{", "[]", '{"about": 5}', json.dumps({"about": {"made_by": "somebody"}})])
def test_shards_of_another_origin_are_kept(render, tmp_path, manifest):
    (tmp_path / "000000.tar").write_bytes(b"theirs")
    (tmp_path / "manifest.json").write_text(manifest)
    code, _, complaint = render(f"data.shards={tmp_path}")
    assert code == 2
    assert "holds shards that this tool did not make" in complaint
    assert (tmp_path / "000000.tar").read_bytes() == b"theirs"


def test_unusable_directories_are_refused_in_one_sentence(render, tmp_path):
    shards = f"data.shards={tmp_path}/signs"
    (tmp_path / "file").touch()
    for overrides, said in (
        (["data.shards=''"], "data.shards: a set is rendered into one local directory, not ''"),
        (["data.shards=s3://bucket/signs"], "not 's3://bucket/signs'"),
        (["data.shards=pipe:cat"], "data.shards: pipe:cat would run a program"),
        (["data.shards=" + "x" * 300], "data.shards: 'xxx"),
        ([f"data.shards={tmp_path}/file"], "Cannot write shards to"),
        ([shards, f"data.held_out={tmp_path}/a*"], "data.held_out: a set is rendered into one local directory"),
        ([shards, "data.held_out=pipe:cat"], "data.held_out: pipe:cat would run a program"),
        ([shards, f"data.held_out={tmp_path}/x/../signs"], "is data.shards too, and would replace it"),
        ([shards, "data.mix=[{shards: a, weight: 1}]"], "data.mix: one set is rendered"),
    ):
        code, _, complaint = render(*overrides)
        assert code == 2
        assert complaint.startswith("error: ")
        assert complaint.count("\n") == 1
        assert said in complaint
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
