"""make_shards end to end, as a user runs it: shards and a summary, and errors with exit code 2."""

import collections
import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlad.cli.shards import MAKE
from vlad.data.decoding import decode_sample
from vlad.data.importers.on_ray import _ShardMaker
from vlad.data.importers.shard_builder import ShardSpec
from vlad.data.options import AnnotateOptions, SyntheticOptions
from vlad.data.shards.reader import index_shards, read_members
from vlad.data.signs import render_sign
from vlad.layout.polygons import polygon_iou
from vlad.types import Sample
from vlad.utils.errors import UserError
from vlad.utils.locks import directory_lock

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "make_shards.py"
WORDS = ("HOUSE", "GARDEN", "WINTER")
OPTIONS = SyntheticOptions(size_pixels=128, seed=2, ground_share=0.0)
SIGNS = [render_sign(OPTIONS, index, WORDS) for index in range(len(WORDS))]


def start(*arguments):
    """The tool in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, str(TOOL), *map(str, arguments)], stdout=pipe, stderr=pipe, text=True, env=environment
    )


@pytest.fixture
def tool(call_verb):
    """The tool in this process: arguments -> exit code, what it printed, what it complained of."""
    return functools.partial(call_verb, MAKE)


@pytest.fixture
def refused(tool):
    """What the tool says when it refuses: one line, no traceback, exit code 2."""

    def run(*arguments):
        code, out, complaint = tool(*arguments)
        assert (code, out) == (2, "")
        assert complaint.startswith("error: ")
        assert complaint.count("\n") == 1
        return complaint

    return run


def contents(shards):
    return {path.name: path.read_bytes() for path in shards.iterdir()}


def read_all(shards) -> list[Sample]:
    paths = index_shards(str(shards)).paths
    return [decode_sample(members, key) for path in paths for key, members in read_members(path)]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three signs (one in a folder below, one with its caption), one empty file, one that is no image."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    for sign, name in zip(SIGNS, ("a.PNG", "b.c.png", "more/d.webp"), strict=True):
        Image.fromarray(sign.image).save(folder / name, lossless=True)
    (folder / "b.c.txt").write_text("the gate of a park\n")
    (folder / "e.jpg").touch()
    (folder / "f.jpg").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def made(images, tmp_path_factory):
    """Made by a process with two others."""
    out = tmp_path_factory.mktemp("made") / "shards"
    process = start(images, "--out", out, "--samples-per-shard", 2, "--workers", 2)
    said, complaint = process.communicate(timeout=300)
    assert process.returncode == 0, complaint
    return said, complaint, out


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """120 small images whose lines an mmocr file gives: no engine is needed. Number 7 is missing."""
    folder = tmp_path_factory.mktemp("annotated")
    entries = []
    for number in range(120):
        if number != 7:
            pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        instance = {"bbox": [0, 0, 32, 8], "text": f"N{number}"}
        entries.append({"img_path": f"{number}.png", "instances": [instance]})
    (folder / "lines.json").write_text(json.dumps({"data_list": entries}, indent=1))
    return folder / "lines.json"


def test_images_become_samples_with_their_text(made):
    samples = read_all(made[2])
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
        assert polygon_iou(line.polygon, sign.layout.lines[0].polygon) > 0.5


def test_the_summary_lists_every_skipped_image(made):
    said, complaint, out = made
    assert "images taken: 3 (shards: 2" in said
    assert "lines of text: 3, of them marked as not legible: 0" in said
    assert "images skipped: 2\n  1 x the file is empty\n  1 x the file is damaged" in said
    assert "\n  e.jpg: the file is empty\n  f.jpg: the file is damaged" in said
    assert "image/s" in complaint  # the bar, with its rate
    named = [json.loads(line)["name"] for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert named == ["e.jpg", "f.jpg"]


def test_the_manifest_says_what_is_in_the_shards_and_what_made_them(made, images):
    out = made[2]
    record = json.loads((out / "manifest.json").read_text())
    assert [(entry["name"], entry["samples"]) for entry in record["shards"]] == [("000000.tar", 2), ("000002.tar", 1)]
    assert record["about"]["engine"].startswith("rapidocr ")
    assert (record["about"]["source"], record["about"]["format"]) == (images.name, "folder")
    assert record["statistics"] == {
        "mean_width_pixels": 128.0,
        "mean_height_pixels": 128.0,
        "lines": 3,
        "valid_lines": 3,
        "characters": len("".join(WORDS)),
        "scripts": {"latin": 3},
        "languages": {},
    }
    assert [entry["statistics"]["lines"] for entry in record["shards"]] == [2, 1]
    # The second shard would hold what was skipped alone.
    names = [f"00000{number}.{kind}" for number in (0, 2) for kind in ("sizes.json", "tar")]
    names += ["manifest.json", "skipped.jsonl"]
    assert sorted(path.name for path in out.iterdir()) == names


def test_existing_shards_are_kept_without_overwrite(made, images, tool, refused, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(made[2], out)
    before = contents(out)
    assert "holds shards already" in refused(images, "--out", out)
    assert "holds shards already" in refused(images, "--out", out, "--resume")
    assert contents(out) == before
    # Fewer shards than before: none of the old ones stays behind.
    code, _, complaint = tool(
        images, "--out", out, "--samples-per-shard", 10, "--overwrite", "--image-format", "png", "--workers", 1
    )
    assert code == 0, complaint
    assert sorted(path.name for path in out.iterdir()) == [
        *("000000.sizes.json", "000000.tar"),
        *("manifest.json", "skipped.jsonl"),
    ]
    assert [sample.image.tobytes() for sample in read_all(out)] == [sign.image.tobytes() for sign in SIGNS]
    # One process makes what three made.
    assert tool(images, "--out", out, "--samples-per-shard", 2, "--overwrite", "--workers", 1)[0] == 0
    assert contents(out) == before


def test_a_killed_run_resumes_and_makes_the_same_bytes(annotated, tool, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert tool(annotated, "--out", whole, "--samples-per-shard", 1, "--workers", 1)[0] == 0
    assert not (whole / "000007.tar").exists()  # it would be empty
    for last in ("000005.tar", "000020.tar"):
        process = start(annotated, "--out", killed, "--samples-per-shard", 1, "--workers", 1)
        while not (killed / last).exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        assert not (killed / "manifest.json").exists()
    code, out, _ = tool(annotated, "--out", killed, "--samples-per-shard", 1, "--workers", 1, "--resume")
    assert code == 0
    assert "was begun: resuming after" in out
    assert "images taken: 119" in out
    assert "  lines.json, entry 8" in out  # skipped in a process that is long dead
    assert contents(killed) == contents(whole)


tells_files_apart = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc")


def fail_at(monkeypatch, shard, error):
    """Fails where shard number `shard` is written down to the disk."""
    real = os.fsync

    def fsync(number):
        if Path(f"/proc/self/fd/{number}").readlink().name == f"{shard:06d}.tar.partial":
            raise error
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)


@tells_files_apart
def test_shards_of_other_settings_are_not_mixed(annotated, tool, refused, tmp_path, monkeypatch):
    source = tmp_path / "in" / "lines.json"
    shutil.copytree(annotated.parent, source.parent)
    out = tmp_path / "out"
    arguments = (source, "--out", out, "--workers", 1, "--samples-per-shard")
    assert "no shards that were begun" in refused(*arguments, 50, "--resume")
    fail_at(monkeypatch, 1, KeyboardInterrupt())
    assert tool(*arguments, 50)[0] == 130
    monkeypatch.undo()
    assert sorted(contents(out)) == ["000000.sizes.json", "000000.tar", "begun.jsonl"]
    with (out / "begun.jsonl").open("a") as stream:
        stream.write('{"number": 1, "entr')  # as a machine leaves it that stops
    (out / "000001.tar").write_bytes(b"of a shard that the journal does not know")
    (out / "000009.tar.partial").touch()
    assert "with other settings" in refused(*arguments, 51)
    entries = json.loads(source.read_text())["data_list"]
    source.write_text(json.dumps({"data_list": entries[:30]}))
    code, _, complaint = tool(*arguments, 50)
    assert code == 2
    assert "has changed since these shards were begun" in complaint
    source.write_text(json.dumps({"data_list": entries}))
    code, said, _ = tool(*arguments, 50)
    assert code == 0
    assert "resuming after 50 images in 1 shard." in said
    shards = [f"00000{number}.{kind}" for number in range(3) for kind in ("sizes.json", "tar")]
    assert sorted(contents(out)) == [*shards, "manifest.json", "skipped.jsonl"]


def test_an_unusable_captioner_leaves_nothing_to_resume(annotated, tool, tmp_path):
    arguments = (annotated, "--out", tmp_path / "out", "--workers", 1)
    code, said, complaint = tool(*arguments, "--captioner", tmp_path)
    assert (code, said) == (2, "")
    assert "cannot be used as an image-text-to-text model" in complaint
    assert tool(*arguments)[0] == 0


@tells_files_apart
def test_a_full_disk_costs_no_finished_shard(annotated, tool, tmp_path, monkeypatch):
    arguments = (annotated, "--samples-per-shard", 50, "--workers", 1, "--out")
    assert tool(*arguments, tmp_path / "whole")[0] == 0
    fail_at(monkeypatch, 1, OSError(errno.ENOSPC, "No space left on device"))
    code, _, complaint = tool(*arguments, tmp_path / "out")
    assert code == 2
    assert "is full; make room and run the same command again" in complaint
    assert "Traceback" not in complaint
    monkeypatch.undo()
    assert sorted(contents(tmp_path / "out")) == ["000000.sizes.json", "000000.tar", "begun.jsonl"]
    assert tool(*arguments, tmp_path / "out")[0] == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@tells_files_apart
def test_shards_go_to_a_url_one_by_one_and_the_manifest_last(annotated, tool, refused, tmp_path, monkeypatch):
    """A folder in place of an object store, behind `vlad.data.storage.locations`."""
    arrived = []
    store = tmp_path / "store"
    store.mkdir()

    def publish(local, target):
        name = target.removeprefix("s3://bucket/set/")
        shutil.copy(local, store / name)
        arrived.append(name)

    def list_files(url, suffix):
        return [f"{url}/{path.name}" for path in store.iterdir() if path.name.endswith(suffix)]

    monkeypatch.setattr("vlad.data.storage.locations.publish", publish)
    monkeypatch.setattr("vlad.data.storage.locations.list_files", list_files)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = (annotated, "--samples-per-shard", 50, "--workers", 1, "--out")
    with monkeypatch.context() as patch:
        fail_at(patch, 1, KeyboardInterrupt())
        assert tool(*arguments, "s3://bucket/set/")[0] == 130
    assert arrived == ["000000.sizes.json", "000000.tar"]
    code, said, complaint = tool(*arguments, "s3://bucket/set/")
    assert code == 0, complaint
    assert "resuming after 50 images" in said
    shards = [f"00000{number}.{kind}" for number in range(3) for kind in ("sizes.json", "tar")]
    assert arrived == [*shards, "skipped.jsonl", "manifest.json"]
    assert list((tmp_path / "cache/vlad/make_shards").iterdir()) == []
    assert "holds shards already" in refused(*arguments, "s3://bucket/set/")
    assert "Nothing is deleted at a URL" in refused(*arguments, "s3://bucket/set/", "--overwrite")
    assert tool(*arguments, tmp_path / "local")[0] == 0
    assert contents(store) == contents(tmp_path / "local")


def test_ray_makes_the_same_shards(annotated, tool, tmp_path):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    arguments = (annotated, "--samples-per-shard", 30, "--workers", 2, "--out")
    assert tool(*arguments[:3], "--workers", 1, "--out", tmp_path / "local")[0] == 0
    process = start(*arguments, tmp_path / "ray", "--engine", "ray")
    said, complaint = process.communicate(timeout=300)
    assert process.returncode == 0, complaint
    assert "images taken: 119" in said
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_without_ray_the_extra_is_named(annotated, refused, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'vlad-diffusion[ray]'" in refused(annotated, "--out", tmp_path, "--engine", "ray")


def test_a_cluster_that_does_not_answer_is_one_sentence(annotated, refused, tmp_path, monkeypatch):
    def init(**options):
        raise ConnectionError("no answer\nafter 5 attempts")

    ray = types.SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("RAY_ADDRESS", "nowhere:6379")
    said = refused(annotated, "--out", tmp_path, "--run-on", "ray")
    assert "the cluster at RAY_ADDRESS=nowhere:6379 does not answer (ConnectionError: no answer after 5" in said


def test_an_unusable_captioner_is_reported_by_a_ray_worker(tmp_path):
    """Raised in the constructor, it would come as Ray's own error with a traceback."""

    def build():
        raise UserError("--captioner x cannot be used.")

    spec = ShardSpec(None, AnnotateOptions(), build, build)
    row = {"number": 0, "refs": b"", "error": ""}
    assert _ShardMaker(spec, tmp_path)(row)["error"] == "--captioner x cannot be used."


def test_a_name_with_a_line_end_stays_in_its_line(tool, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / os.fsdecode(b"a\n\x1b[31m\xff.jpg")).touch()
    _, said, _ = tool(tmp_path / "in", "--out", tmp_path / "out")
    assert "  a\\n\\x1b[31m\\udcff.jpg: the file is empty" in said.splitlines()


def test_a_folder_without_a_usable_image_is_refused(tool, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").touch()
    code, said, complaint = tool(tmp_path / "in", "--out", tmp_path / "out")
    assert code == 2
    assert "a.jpg: the file is empty" in said
    assert "error: The only image in" in complaint
    assert list((tmp_path / "out").iterdir()) == []


def test_annotations_without_their_images_are_refused_at_once(annotated, refused, tmp_path):
    lonely = tmp_path / "lines.json"
    lonely.write_bytes(annotated.read_bytes())
    said = refused(lonely, "--out", tmp_path / "out")
    assert "Not one of the first 20 images" in said
    assert "name the images' folder with --images" in said
    lonely.write_text('{"data_list": [\n{"img_path": "1.png", "instances": 5}]}')
    assert 'lines.json, entry 1 (line 2): field "instances" is no list' in refused(lonely, "--out", tmp_path / "out")
    lonely.write_text('{"data_list": [{"instances": []}')
    assert "line 1: the file ends here" in refused(lonely, "--out", tmp_path / "out")


def test_mistakes_are_refused_in_one_sentence(images, refused, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.jpg").write_bytes(b"x")
    assert "There is no file or folder" in refused(tmp_path / "none", "--out", out)
    assert "is a file; name the folder" in refused(tmp_path / "file.jpg", "--out", out)
    assert "There are no images" in refused(tmp_path / "empty", "--out", out)
    assert "There is no format 'foldr'. Did you mean 'folder'?" in refused(images, "--out", out, "--format", "foldr")
    assert "Cannot write a set of shards" in refused(images, "--out", tmp_path / "file.jpg" / "below")
    assert "--samples-per-shard must be at least 1" in refused(images, "--out", out, "--samples-per-shard", 0)
    assert "--caption-batch must be at least 1" in refused(images, "--out", out, "--caption-batch", 0)
    assert "--workers must be at least 1" in refused(images, "--out", out, "--workers", 0)
    assert "max_strings" in refused(images, "--out", out, "--max-strings", 0)
    assert not out.exists()
    assert "--out is empty" in refused(images, "--out", "")
    assert "would run a program" in refused(images, "--out", "pipe:cat")
    assert "nothing is written over HTTP" in refused(images, "--out", "http://localhost:1/shards")
    assert "Nothing is deleted at a URL" in refused(images, "--out", "s3://bucket/shards", "--overwrite")
    assert "SOURCE is empty" in refused("", "--out", out)
    assert "fetch it first" in refused("s3://bucket/images", "--out", out)
    assert "fetch it first" in refused("https://user:secret@host/a.tar", "--out", out)
    assert "secret" not in refused("https://user:secret@host/a.tar", "--out", out)
    assert not out.exists()
    assert "Did you mean 'rapidocr'?" in refused(images, "--out", out, "--engine", "rapidorc")
    assert list(out.iterdir()) == []


def test_unusable_paths_are_refused_in_one_sentence(images, refused, tmp_path):
    """Names that the system refuses, ranges that would fill the memory; each with the argument that names it."""
    out, long = tmp_path / "out", "x" * 300
    (tmp_path / "loop").symlink_to("loop")
    assert "SOURCE 'xxx" in refused(long, "--out", out)
    assert "SOURCE " in refused(tmp_path / "loop", "--out", out)
    assert "SOURCE: " in refused(tmp_path / "{0..9.tar", "--out", out)
    assert "stands for over 1000000 shards" in refused(tmp_path / "{0..999999999999}.tar", "--out", out)
    assert "stands for over 1000000 shards" in refused(tmp_path / f"{{0..{'9' * 5000}}}.tar", "--out", out)
    assert "--out 'xxx" in refused(images, "--out", long)
    assert "--out " in refused(images, "--out", tmp_path / "loop")
    for url in ("pipe:cat", "simplecache::s3://bucket/x", "s33://bucket/x", "zip://x"):
        assert refused(images, "--out", url).startswith("error: --out: ")
    assert "is where SOURCE stands" in refused(images, "--out", f"file://{images}")
    assert not out.exists()


def test_options_without_effect_on_the_source_are_refused(annotated, images, refused, tmp_path):
    out = tmp_path / "out"
    assert "format mmocr has no fields with captions" in refused(annotated, "--out", out, "--caption-field", "title")
    assert "has its images itself" in refused(images, "--out", out, "--images", images)
    assert 'has text in field "title"' in refused(images, "--out", out, "--caption-field", "title")
    entries = tmp_path / "anyword.json"
    entry = {"img_name": "a.PNG", "caption": "a sign", "annotations": []}
    entries.write_text(json.dumps({"data_list": [entry]}))
    said = refused(entries, "--out", out, "--images", images, "--caption-field", "title")
    assert "--caption-field title: none of the first 1 image " in said
    assert list(out.iterdir()) == []


def test_shards_never_replace_what_they_are_made_of(made, images, refused):
    before = contents(made[2])
    assert "is where SOURCE stands" in refused(made[2], "--out", made[2], "--overwrite")
    assert "is where SOURCE stands" in refused(made[2] / "{000000..000000}.tar", "--out", made[2], "--overwrite")
    assert "is where SOURCE stands" in refused(images, "--out", images)
    assert contents(made[2]) == before


def test_a_source_that_cannot_be_read_to_its_end_is_refused(refused, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is neither a file nor a folder" in refused(tmp_path / "pipe", "--out", tmp_path / "out")


def test_one_process_at_a_time_writes_a_directory(annotated, tool, refused, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with directory_lock(out, "a set of shards"):
        assert "Another process is at work on a set of shards" in refused(annotated, "--out", out)
        assert "Another process" in refused(annotated, "--out", out, "--overwrite")
    assert tool(annotated, "--out", out, "--workers", 1)[0] == 0
    assert not (out / ".lock").exists()


def test_a_full_disk_is_named_before_anything_is_read(images, refused, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
    assert "MB free, but a set of shards needs about" in refused(images, "--out", tmp_path / "out")


def test_help_and_a_wrong_image_format_are_answered_by_the_parser(tool):
    code, said, _ = tool("--help")
    assert code == 0
    assert "NAME.txt" in said
    assert "LAION-Glyph" in said
    code, _, complaint = tool("folder", "--out", "out", "--image-format", "gif")
    assert code == 2
    assert "invalid choice: 'gif'" in complaint
