"""Importers with a captioner: batches, quoted strings, the command line."""

import json

import pytest
from PIL import Image

from vlad.cli.shards import MAKE
from vlad.data.importers.folder import FolderSource
from vlad.data.importers.shard_builder import ShardSpec, make_shards_locally
from vlad.data.options import AnnotateOptions
from vlad.data.shards.reader import read_members
from vlad.layout.polygons import box_polygon
from vlad.models.captioner import LVLMCaptioner
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.types import TextLine


class Parrot:
    """A captioner whose sentences show the batch that it was given."""

    name = "parrot"

    def describe(self, images, strings):
        return [
            f'a "nice" image {number} of {len(images)}, {image.shape[1]} wide' for number, image in enumerate(images)
        ]


class EngineThatReadsOpen:
    name = "open 1"

    def read(self, image):
        return (TextLine("OPEN", box_polygon(0.1, 0.1, 0.9, 0.3), confidence=0.9),)


def captions_of(folder, out, build_captioner, samples_per_shard=4, batch=2):
    source = FolderSource(folder)
    spec = ShardSpec(source, AnnotateOptions(), EngineThatReadsOpen, build_captioner, samples_per_shard, batch)
    out.mkdir()
    list(make_shards_locally(spec, out, out, {}, 1, lambda ref: None))
    shards = sorted(out.glob("*.tar"))

    return [json.loads(members["json"])["caption"] for path in shards for _, members in read_members(str(path))]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (40 + number, 40)).save(folder / f"{number}.png")
    (folder / "1.txt").write_text("written by hand")
    (folder / "2.png").write_bytes(b"damaged")
    return folder


def test_missing_captions_are_written_in_batches_that_end_with_the_shard(images, tmp_path):
    said = ', with text that says "OPEN"'
    assert captions_of(images, tmp_path / "out", Parrot) == [
        f"a nice image 0 of 2, 40 wide{said}",
        "written by hand",
        f"a nice image 1 of 2, 43 wide{said}",
        f"a nice image 0 of 2, 44 wide{said}",
        f"a nice image 1 of 2, 45 wide{said}",
    ]
    assert captions_of(images, tmp_path / "more", Parrot, samples_per_shard=5)[-2:] == [
        f"a nice image 0 of 1, 44 wide{said}",
        f"a nice image 0 of 1, 45 wide{said}",
    ]


def test_the_command_line_takes_a_model_s_folder(tmp_path, tiny_llava):
    Image.new("RGB", (64, 48), "white").save(tmp_path / "1.png")
    entry = {"img_path": "1.png", "instances": [{"bbox": [0, 0, 32, 8], "text": "OPEN"}]}
    (tmp_path / "a.json").write_text(json.dumps({"data_list": [entry]}))
    out = tmp_path / "out"
    arguments = ["--captioner", str(tiny_llava), "--device", "cpu", "--workers", "1"]
    MAKE([str(tmp_path / "a.json"), "--out", str(out), *arguments], "vlad shards make")
    ((_, members),) = read_members(str(out / "000000.tar"))
    assert parse_prompt(json.loads(members["json"])["caption"]).strings == ("OPEN",)
    assert json.loads((out / "manifest.json").read_text())["about"]["captioner"] == str(tiny_llava)


def test_a_model_s_captions_quote_the_text(images, tmp_path, tiny_llava):
    captions = captions_of(images, tmp_path / "out", lambda: LVLMCaptioner(str(tiny_llava), None, "cpu", 8))
    assert captions[1] == "written by hand"
    del captions[1]
    assert [parse_prompt(caption).strings for caption in captions] == [("OPEN",)] * 4
