"""make_shards from end to end, as a user runs it: pictures in, shards and a summary out, mistakes with exit code 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from vlad.data.decoding import decode_sample
from vlad.data.shards import index_shards, read_members
from vlad.data.synthetic import SyntheticOptions, render_sign
from vlad.layout.polygons import box_iou
from vlad.records import Sample

TOOL = Path(__file__).parents[2] / "tools" / "make_shards.py"
WORDS = ("HOUSE", "GARDEN", "WINTER")
OPTIONS = SyntheticOptions(size_pixels=128, seed=2, ground_share=0.0)
SIGNS = [render_sign(OPTIONS, index, WORDS) for index in range(len(WORDS))]


def make_shards(*arguments):
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def refused(*arguments):
    """What the tool says when it refuses: one line, no traceback, exit code 2."""
    run = make_shards(*arguments)
    assert run.returncode == 2, run.stderr
    assert run.stdout == ""
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
    return run.stderr


def contents(shards):
    return {path.name: path.read_bytes() for path in shards.iterdir()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three signs (one in a folder below, one with its caption), one empty file, one that is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    for sign, name in zip(SIGNS, ("a.PNG", "b.c.png", "more/d.webp"), strict=True):
        Image.fromarray(sign.picture).save(folder / name, lossless=True)
    (folder / "b.c.txt").write_text("the gate of a park\n")
    (folder / "e.jpg").touch()
    (folder / "f.jpg").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def made(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "shards"
    return make_shards(pictures, "--out", out, "--samples-per-shard", 2), out


def read_all(shards) -> list[Sample]:
    paths = index_shards(str(shards)).paths
    return [decode_sample(members, key) for path in paths for key, members in read_members(path)]


def test_pictures_become_samples_with_their_text(made):
    run, out = made
    assert run.returncode == 0, run.stderr
    samples = read_all(out)
    assert [sample.key for sample in samples] == ["a", "b_c", "more_d"]
    assert [sample.caption for sample in samples] == [
        'a picture that says "HOUSE"',
        "the gate of a park",
        'a picture that says "WINTER"',
    ]
    for sample, sign, word in zip(samples, SIGNS, WORDS, strict=True):
        (line,) = sample.layout.lines
        assert (line.text, line.valid) == (word, True)
        assert line.confidence > 0.9
        assert box_iou(line.polygon, sign.layout.lines[0].polygon) > 0.5


def test_the_summary_names_everything_that_was_skipped(made, pictures):
    run, _ = made
    assert "pictures taken: 3 (shards: 2" in run.stdout
    assert "lines of text read in this run: 3" in run.stdout
    assert "pictures skipped: 2" in run.stdout
    assert f"{pictures / 'e.jpg'}: the file is empty" in run.stdout
    assert f"{pictures / 'f.jpg'}: the file is damaged" in run.stdout
    assert "picture/s" in run.stderr  # the bar, with its rate


def test_the_manifest_says_what_made_the_shards(made, pictures):
    _, out = made
    record = json.loads((out / "manifest.json").read_text())
    assert [(entry["name"], entry["samples"]) for entry in record["shards"]] == [("000000.tar", 2), ("000001.tar", 1)]
    assert record["about"]["engine"].startswith("rapidocr ")
    assert record["about"]["folder"] == pictures.name
    assert sorted(path.name for path in out.iterdir()) == ["000000.tar", "000001.tar", "manifest.json"]


def test_shards_that_are_there_are_kept_until_overwriting_is_asked_for(made, pictures):
    _, out = made
    before = contents(out)
    assert "holds shards already" in refused(pictures, "--out", out)
    assert contents(out) == before
    # Fewer shards than before: none of the old ones stays behind.
    run = make_shards(pictures, "--out", out, "--samples-per-shard", 10, "--overwrite", "--format", "png")
    assert run.returncode == 0, run.stderr
    assert sorted(path.name for path in out.iterdir()) == ["000000.tar", "manifest.json"]
    assert [sample.picture.tobytes() for sample in read_all(out)] == [sign.picture.tobytes() for sign in SIGNS]
    # Back to what the other tests read.
    assert make_shards(pictures, "--out", out, "--samples-per-shard", 2, "--overwrite").returncode == 0
    assert contents(out) == before


def test_an_interrupted_run_is_taken_up_again(made, pictures, tmp_path):
    _, whole = made
    about = json.loads((whole / "manifest.json").read_text())["about"]
    # As a run leaves it that is killed in its second shard.
    (tmp_path / "000000.tar").write_bytes((whole / "000000.tar").read_bytes())
    (tmp_path / "000001.tar.partial").write_bytes(b"half a shard")
    (tmp_path / "begun.json").write_text(json.dumps(about))
    assert "with other settings" in refused(pictures, "--out", tmp_path, "--samples-per-shard", 3)
    run = make_shards(pictures, "--out", tmp_path, "--samples-per-shard", 2)
    assert run.returncode == 0, run.stderr
    assert "goes on after 2 pictures" in run.stdout
    assert contents(tmp_path) == contents(whole)


def test_a_folder_without_one_good_picture_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").touch()
    run = make_shards(tmp_path / "in", "--out", tmp_path / "out")
    assert run.returncode == 2
    assert "a.jpg: the file is empty" in run.stdout
    assert "error: Not one of the 1 pictures" in run.stderr
    assert "Traceback" not in run.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_mistakes_are_refused_in_one_sentence(pictures, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert "There is no folder" in refused(tmp_path / "none", "--out", out)
    assert "is a file; name the folder" in refused(tmp_path / "file", "--out", out)
    assert "There are no pictures" in refused(tmp_path / "empty", "--out", out)
    assert "Cannot write a set of shards" in refused(pictures, "--out", tmp_path / "file")
    assert "Cannot write a set of shards" in refused(pictures, "--out", tmp_path / "file" / "below")
    assert "--samples-per-shard must be at least 1" in refused(pictures, "--out", out, "--samples-per-shard", 0)
    assert "max_strings" in refused(pictures, "--out", out, "--max-strings", 0)
    assert not out.exists()
    assert "Did you mean 'rapidocr'?" in refused(pictures, "--out", out, "--engine", "rapidorc")


def test_a_full_disk_is_named_before_anything_is_read(pictures, tmp_path):
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "import collections, runpy, shutil, sys\n"
            "usage = collections.namedtuple('usage', 'total used free')\n"
            "shutil.disk_usage = lambda path: usage(10, 10, 0)\n"
            "sys.argv = sys.argv[1:]\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')",
            str(TOOL),
            str(pictures),
            "--out",
            str(tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 2
    assert "MB free, but a set of shards needs about" in run.stderr


def test_help_and_a_wrong_format_are_answered_by_the_parser():
    run = make_shards("--help")
    assert run.returncode == 0
    assert "NAME.txt" in run.stdout
    run = make_shards("folder", "--out", "out", "--format", "gif")
    assert run.returncode == 2
    assert "invalid choice: 'gif'" in run.stderr
