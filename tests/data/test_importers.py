"""Importers of public formats: a small file of each, laid out as its authors do."""

import base64
import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import random
import re
import tarfile

import numpy as np
import pytest
from PIL import Image, ImageOps

from vlad.data.decoding import decode_sample
from vlad.data.importers.annotate import AnnotateOptions, annotate
from vlad.data.importers.detect_format import FORMATS, detect_format, open_source
from vlad.data.importers.sources import Skipped, from_top_left
from vlad.data.importers.webdataset_tars import TarSource
from vlad.data.shards.writer import write_shards
from vlad.layout.polygons import box_polygon
from vlad.types import Layout, Sample, TextLine
from vlad.utils.errors import UserError

READ = TextLine("READ", box_polygon(0.1, 0.1, 0.9, 0.3), confidence=0.9)


def image_bytes(size=(64, 64), colour="red", format="JPEG", **options):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format, **options)
    return buffer.getvalue()


def import_all(source, lines=(READ,), **options):
    options = AnnotateOptions(image_format="png", **options)
    items = [annotate(source, ref, lambda image: tuple(lines), options, False) for ref in source.refs()]
    return [item if isinstance(item, Skipped) else decode_sample(item.members, item.key) for item in items]


def rounded(polygon):
    return [(round(x, 3), round(y, 3)) for x, y in polygon]


# MARIO-LAION


def mario_sample(folder, ocr="OPEN 51.2,51.2,256,51.2,256,102.4,51.2,102.4 0.98\n", caption="a door\n", **info):
    folder.mkdir(parents=True)
    (folder / "image.jpg").write_bytes(image_bytes((512, 512)))
    (folder / "caption.txt").write_text(caption)
    (folder / "ocr.txt").write_text(ocr)
    (folder / "info.json").write_text(json.dumps({"url": "http://x/1.jpg", "LICENSE": "?", **info}))
    return folder


def test_mario_folders_with_their_words(tmp_path):
    mario_sample(tmp_path / "00001/000010002", LICENSE="CC0")
    mario_sample(tmp_path / "00001/000010001", "two words 0,0,512,0,512,50,0,50 0.3\n")
    mario_sample(tmp_path / "00000/000000009", "broken line\n")
    (tmp_path / "00002/000020000").mkdir(parents=True)
    assert detect_format(tmp_path) == "mario"
    items = import_all(open_source(str(tmp_path)))
    assert isinstance(items[0], Skipped)
    assert items[0].reason == "ocr.txt is wrong: line 1: 'broken line'"
    doubtful, sure = items[1:3]
    assert (sure.key, sure.caption, sure.source, sure.licence) == ("00001_000010002", "a door", "http://x/1.jpg", "CC0")
    (line,) = sure.layout.lines
    assert (line.text, line.valid, line.confidence) == ("OPEN", True, 0.98)
    assert rounded(line.polygon) == [(0.1, 0.1), (0.5, 0.1), (0.5, 0.2), (0.1, 0.2)]
    assert [(line.text, line.valid) for line in doubtful.layout.lines] == [("two words", False)]
    assert doubtful.licence is None
    assert items[3].kind == "there is no such file"


def test_a_mario_sample_without_ocr_or_caption_is_read_and_captioned(tmp_path):
    folder = mario_sample(tmp_path / "00001/000010001")
    for name in ("ocr.txt", "caption.txt", "info.json"):
        (folder / name).unlink()
    (sample,) = import_all(open_source(str(tmp_path)))
    assert (sample.caption, sample.layout.lines) == ('a picture that says "READ"', (READ,))


def test_a_mario_index_gives_the_order(tmp_path):
    mario_sample(tmp_path / "00001/000010001")
    mario_sample(tmp_path / "00001/000010002")
    index = tmp_path / "index.txt"
    index.write_text("00001_000010002\n00003_000030003\n00001_000010001\n00001_000010002\n\n")
    source = open_source(str(index))
    assert (source.format, source.count) == ("mario", 3)
    items = import_all(source)
    assert [getattr(item, "key", None) for item in items] == ["00001_000010002", None, "00001_000010001"]
    assert items[1].reason == "its folder is missing"
    index.write_text("00001_000010002\nnonsense\n")
    with pytest.raises(UserError, match="line 2 is no entry like"):
        open_source(str(index))


# AnyWord


def anyword(path, entries, **top):
    path.write_text(json.dumps({**top, "data_list": entries}))
    return path


ANYWORD = {
    "img_name": "1.jpg",
    "caption": "a dance sticker",
    # From the bottom left, upwards: as AnyWord's corners begin anywhere.
    "annotations": [
        {"polygon": [[64, 128], [64, 64], [448, 64], [448, 128]], "text": "DANCE", "language": "Latin", "valid": True},
        {"polygon": [[0, 256], [512, 256], [512, 300], [0, 300]], "text": "#?", "language": "Chinese", "valid": False},
    ],
}


def test_anyword_entries_in_the_frame_of_512_pixels(tmp_path):
    (tmp_path / "imgs").mkdir()
    (tmp_path / "imgs/1.jpg").write_bytes(image_bytes((400, 200)))
    path = anyword(tmp_path / "sub set.json", [ANYWORD], data_root="/somewhere/else")
    assert detect_format(path) == "anyword"
    (sample,) = import_all(open_source(str(path)))
    assert (sample.key, sample.caption, sample.source) == ("sub_set_00000000", "a dance sticker", "1.jpg")
    dance, ignored = sample.layout.lines
    assert (dance.text, dance.language, dance.valid) == ("DANCE", "Latin", True)
    assert rounded(dance.polygon) == [(0.125, 0.125), (0.875, 0.125), (0.875, 0.25), (0.125, 0.25)]
    assert (ignored.text, ignored.valid) == ("#?", False)


def test_text_can_be_quoted_into_captions_that_a_source_has(tmp_path):
    (tmp_path / "1.jpg").write_bytes(image_bytes())
    source = open_source(str(anyword(tmp_path / "a.json", [ANYWORD])))
    (sample,) = import_all(source, quote_text=True)
    assert sample.caption == 'a dance sticker, with text that says "DANCE"'
    marks_alone = {**ANYWORD, "caption": '""', "annotations": []}
    (sample,) = import_all(open_source(str(anyword(tmp_path / "b.json", [marks_alone]))), quote_text=True)
    assert sample.caption == "a picture without text"


def test_images_are_looked_up_where_the_file_or_the_user_says(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here/1.jpg").write_bytes(image_bytes())
    relative = anyword(tmp_path / "a.json", [ANYWORD], data_root="here")
    assert len(import_all(open_source(str(relative)))) == 1
    for name in ("1.jpg", "some/where/1.jpg", "/abs/1.jpg"):
        path = anyword(tmp_path / "b.json", [{**ANYWORD, "img_name": name}])
        (sample,) = import_all(open_source(str(path), images=tmp_path / "here"))
        assert isinstance(sample, Sample)
    (climbing,) = import_all(open_source(str(anyword(tmp_path / "b.json", [{**ANYWORD, "img_name": "../x/1.jpg"}]))))
    assert climbing.kind == "its name leads out of the folder"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"img_name": None}, 'field "img_name" is missing'),
        ({"img_name": 5}, 'field "img_name" is not text: 5'),
        ({"annotations": 5}, 'field "annotations" is no list of objects'),
        ({"annotations": [{"text": "A"}]}, 'field "polygon" is no list of points: None'),
        ({"annotations": [{"text": "A", "polygon": [[1, 2], [3, 4]]}]}, 'field "polygon" is no list of three points'),
        ({"annotations": [{"text": "A", "polygon": [[1, 2], [3, 4], [5, 1e99]]}]}, 'field "polygon" is no list of'),
        ({"annotations": [{"text": 5, "polygon": [[1, 2], [3, 4], [5, 6]]}]}, 'field "text" is not text'),
    ],
)
def test_a_wrong_field_is_named(tmp_path, change, said):
    (tmp_path / "1.jpg").write_bytes(image_bytes())
    (item,) = import_all(open_source(str(anyword(tmp_path / "a.json", [{**ANYWORD, **change}]))))
    assert item.name == "a.json, entry 1 (line 1)"
    assert item.reason.startswith(said)


# LAION-Glyph


def test_laion_glyph_entries_with_their_images_inside(tmp_path):
    entry = {
        "img_id": 7,
        "img_code": base64.b64encode(image_bytes((200, 100))).decode(),
        "caption_origin": "from the web",
        "caption_blip": "from a model",
        "ocr_info": [[[[20, 10], [100, 10], [100, 30], [20, 30]], ["OPEN", 0.9]]],
    }
    wrong = [{**entry, "img_code": "%%"}, {**entry, "ocr_info": [[1]]}, {**entry, "img_code": ""}]
    path = tmp_path / "glyph.json"
    path.write_text(json.dumps([entry, {**entry, "caption_blip": None, "ocr_info": None}, *wrong]))
    assert detect_format(path) == "laion_glyph"
    first, second, *skipped = import_all(open_source(str(path)))
    assert (first.caption, first.source, first.layout.lines[0].text) == ("from a model", "7", "OPEN")
    assert rounded(first.layout.lines[0].polygon) == [(0.1, 0.1), (0.5, 0.1), (0.5, 0.3), (0.1, 0.3)]
    assert (second.caption, second.layout.lines) == ("from the web", (READ,))
    assert [item.kind for item in skipped] == [
        'field "img_code" is not base64',
        'field "ocr_info" holds no [points, [text, confidence]]',
        'field "img_code" is missing',
    ]
    (sample, *_) = import_all(open_source(str(path), caption_field="caption_origin"))
    assert sample.caption == "from the web"


# mmocr and wildreceipt


def mmocr(path, instances, **entry):
    record = {"img_path": "imgs/1.jpg", "height": 100, "width": 200, "instances": instances, **entry}
    path.write_text(json.dumps({"metainfo": {"task_name": "x"}, "data_list": [record]}))
    (path.parent / "imgs").mkdir(exist_ok=True)
    (path.parent / "imgs/1.jpg").write_bytes(image_bytes((200, 100)))
    return path


def test_mmocr_lines_with_text(tmp_path):
    instances = [
        {"polygon": [20, 10, 100, 10, 100, 30, 20, 30], "text": "OPEN", "ignore": False},
        {"bbox": [20, 50, 100, 70], "text": "DAILY"},
        {"bbox": [20, 80, 100, 90], "text": "###"},
    ]
    path = mmocr(tmp_path / "a.json", instances)
    assert detect_format(path) == "mmocr"
    (sample,) = import_all(open_source(str(path)))
    assert [(line.text, line.valid) for line in sample.layout.lines] == [
        ("OPEN", True),
        ("DAILY", True),
        ("###", False),
    ]
    assert rounded(sample.layout.lines[1].polygon) == [(0.1, 0.5), (0.5, 0.5), (0.5, 0.7), (0.1, 0.7)]
    assert sample.caption == 'a picture that says "OPEN" and "DAILY"'


def test_a_word_crop_is_one_line(tmp_path):
    (sample,) = import_all(open_source(str(mmocr(tmp_path / "a.json", [{"text": "GRAND"}]))))
    assert sample.layout.lines == (TextLine("GRAND", box_polygon(0.0, 0.0, 1.0, 1.0)),)


def test_regions_without_text_are_read_by_ocr_and_unread_ones_are_invalid(tmp_path):
    found, missed, ignored = [20, 10, 180, 30], [20, 60, 100, 70], [0, 80, 200, 100]
    instances = [{"bbox": found}, {"bbox": missed}, {"bbox": ignored, "ignore": True}]
    noise = TextLine("NOISE", box_polygon(0.1, 0.85, 0.5, 0.95), confidence=0.9)
    (sample,) = import_all(open_source(str(mmocr(tmp_path / "a.json", instances))), (READ, noise))
    assert [(line.text, line.valid) for line in sample.layout.lines] == [
        ("READ", True),
        ("", False),  # missed by the engine
        ("", False),  # ignored by the source
        ("NOISE", False),  # read inside of what is ignored
    ]


def test_wildreceipt_lines(tmp_path):
    box = [20, 30, 100, 30, 100, 10, 20, 10]  # from the bottom left, against the clock
    entries = [
        {"box": box, "text": "TOTAL", "label": 24},
        {"box": [0, 50, 9, 50, 9, 60, 0, 60], "text": "x", "label": 0},
    ]
    record = {"file_name": "tests/data/1.jpeg", "height": 100, "width": 200, "annotations": entries}
    path = tmp_path / "data.txt"
    path.write_text(json.dumps(record) + "\n\n" + json.dumps({**record, "annotations": 5}) + "\n{\n")
    (tmp_path / "1.jpeg").write_bytes(image_bytes((200, 100)))
    assert detect_format(path) == "wildreceipt"
    sample, wrong, broken = import_all(open_source(str(path)))
    assert [(line.text, line.valid) for line in sample.layout.lines] == [("TOTAL", True), ("x", False)]
    assert rounded(sample.layout.lines[0].polygon) == [(0.1, 0.1), (0.5, 0.1), (0.5, 0.3), (0.1, 0.3)]
    assert (wrong.name, wrong.kind) == ("data.txt, entry 2 (line 3)", 'field "annotations" is no list of objects')
    assert broken.kind == "its entry is not JSON"


# Corners and turns


def test_corners_come_clockwise_from_the_top_left_however_they_began():
    quad = ((10.0, 12.0), (90.0, 30.0), (86.0, 50.0), (6.0, 32.0))
    for start in range(4):
        turned = quad[start:] + quad[:start]
        assert from_top_left(turned) == quad
        assert from_top_left(turned[::-1]) == quad
    curved = ((0.0, 5.0), (5.0, 0.0), (10.0, 5.0), (10.0, 8.0), (5.0, 4.0), (0.0, 8.0))
    assert from_top_left(curved) == curved
    assert from_top_left(curved[::-1]) == curved[::-1][::-1]


@pytest.mark.parametrize(
    ("orientation", "of_the_upright"),
    # Where a turn keeps the size, an annotation's frame does not tell: it is taken for what the file stores.
    [*((orientation, False) for orientation in range(1, 9)), *((orientation, True) for orientation in range(5, 9))],
)
def test_polygons_turn_with_their_image(tmp_path, orientation, of_the_upright):
    """A black box on white: at any EXIF orientation its polygon still covers it."""
    stored = Image.new("RGB", (80, 60), "white")
    stored.paste("black", (8, 6, 40, 18))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "1.png", exif=exif)
    box, size = [8, 6, 40, 18], (80, 60)
    if of_the_upright:
        with Image.open(tmp_path / "1.png") as image:
            upright = ImageOps.exif_transpose(image)
            ys, xs = np.nonzero(np.asarray(upright.convert("L")) < 128)
            box, size = [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1], upright.size
    entry = {"img_path": "1.png", "width": size[0], "height": size[1], "instances": [{"bbox": box, "text": "I"}]}
    (tmp_path / "a.json").write_text(json.dumps({"data_list": [entry]}))
    (sample,) = import_all(open_source(str(tmp_path / "a.json")))
    height, width = sample.image.shape[:2]
    points = np.array(sample.layout.lines[0].polygon) * (width, height)
    left, top, right, bottom = (*points.min(axis=0).round().astype(int), *points.max(axis=0).round().astype(int))
    dark = (sample.image < 128).all(axis=2)
    assert dark[top:bottom, left:right].all()
    assert dark.sum() == (right - left) * (bottom - top)


def test_polygons_are_cut_off_at_the_edge_and_those_outside_are_dropped(tmp_path):
    instances = [{"bbox": [-20, 10, 100, 30], "text": "IN"}, {"bbox": [300, 10, 400, 30], "text": "OUT"}]
    (sample,) = import_all(open_source(str(mmocr(tmp_path / "a.json", instances))))
    (line,) = sample.layout.lines
    assert (line.text, rounded(line.polygon)[0]) == ("IN", (0.0, 0.1))


def test_a_failure_of_the_engine_skips_one_image(tmp_path):
    (tmp_path / "1.png").write_bytes(image_bytes(format="PNG"))

    def fail(image):
        raise RuntimeError("out of ideas")

    source = open_source(str(tmp_path))
    (item,) = [annotate(source, ref, fail, AnnotateOptions(), False) for ref in source.refs()]
    assert item.reason == "the OCR engine fails on it: RuntimeError('out of ideas')"


# Tars


def tar(path, *members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_tars_with_captions(tmp_path):
    jpg = image_bytes()
    tar(
        tmp_path / "0.tar",
        ("a/1.jpg", jpg),
        ("a/1.txt", b"a wall\n"),
        ("2.json", b'{"caption": "a door", "url": "http://x"}'),
        ("2.webp", image_bytes(format="WEBP")),
        ("3.pyd", b"not looked at"),
        ("/4.jpg", jpg),
        ("../5.jpg", jpg),
    )
    tar(tmp_path / "1.tar", ("6.jpg", jpg), ("6.json", b"["), ("a/1.png", image_bytes(format="PNG")))
    for path in (str(tmp_path), f"{tmp_path}/{{0..1}}.tar"):
        source = open_source(path)
        assert source.format == "webdataset"
        items = import_all(source)
        assert [getattr(item, "key", None) for item in items] == ["a_1", "2", None, "a_1-2"]
        assert [item.caption for item in items[:2]] == ["a wall", "a door"]
        assert items[1].source == "http://x"
        assert (items[2].name, items[2].kind) == ("1.tar: 6", "its entry is not JSON")
        assert items[3].caption == 'a picture that says "READ"'


def test_our_own_shards_keep_their_lines(tmp_path):
    line = TextLine("OPEN", box_polygon(0.1, 0.2, 0.6, 0.3), language="Latin")
    sample = Sample("k", np.full((40, 50, 3), 9, np.uint8), "a door", Layout((line,)), source="s", licence="CC0")
    write_shards([sample], tmp_path)
    (again,) = import_all(open_source(str(tmp_path)))
    assert (again.image == sample.image).all()
    assert (again.caption, again.layout, again.source, again.licence) == ("a door", sample.layout, "s", "CC0")


def test_a_broken_tar_is_named(tmp_path):
    path = tar(tmp_path / "0.tar", ("1.jpg", image_bytes()))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=r"0\.tar is not a whole tar file"):
        import_all(open_source(str(path)))
    with pytest.raises(UserError, match=r"no tar file .*/2\.tar"):
        open_source(f"{tmp_path}/{{0,2}}.tar")
    with pytest.raises(UserError, match=r"no tar file .*/100\.tar"):  # longer than a file's name can be
        open_source(f"{tmp_path}/{{{','.join(map(str, range(100, 300)))}}}.tar")


def link(name, target, kind=tarfile.LNKTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


JPG, JUNK = image_bytes(), b"\0\5\x16\7"
A, B = [("a.jpg", JPG), ("a.txt", b"of a")], [("b.jpg", JPG), ("b.txt", b"of b")]
MEMBERS = {
    "side by side": (A + B, {"a": "of a", "b": "of b"}, ""),
    "not side by side": ([A[0], B[0], A[1], B[1]], {"a": "of a", "b": "of b"}, ""),
    "AppleDouble members": ([("._a.jpg", JUNK), *A, ("._a.txt", JUNK), *B], {"a": "of a", "b": "of b"}, "AppleDouble"),
    "a hidden folder": ([(".cache/c.jpg", JPG), ("__MACOSX/a.jpg", JUNK), *A], {"a": "of a"}, "2 x hidden"),
    "keys with dots": ([("22.05.jpg", JPG), ("22.05.txt", b"dots")], {"22_05": "dots"}, ""),
    "a mask beside": ([*A, ("a.seg.png", JPG)], {"a": "of a"}, r"\(\.seg\.png\): .*a\.seg\.png"),
    "a hard link": ([*A, (link("b.jpg", "a.jpg"), b""), B[1]], {"a": "of a", "b": "of b"}, ""),
    "a soft link": ([(link("x/b.jpg", "../a.jpg", tarfile.SYMTYPE), b""), *A], {"x_b": None, "a": "of a"}, ""),
    "a link out": ([*A, (link("b.jpg", "/etc/passwd", tarfile.SYMTYPE), b"")], {"a": "of a"}, "link to what"),
    "links in a circle": (
        [*A, (link("b.jpg", "c.jpg", tarfile.SYMTYPE), b""), (link("c.jpg", "b.jpg"), b"")],
        {"a": "of a"},
        "2 x link to what",
    ),
    "other kinds": ([*A, ("a.cls", b"1"), ("README", b"x"), ("c.txt", b"of c")], {"a": "of a"}, r"\(no extension\)"),
    "a caption alone": ([*A, ("c.txt", b"of c")], {"a": "of a"}, "caption without an image: 0.tar: c"),
    "names of captions": (
        [("a.bmp", JPG), ("a.bmp.txt", b"of a"), ("b.JFIF", JPG), ("b.CAPTION", b"of\n\nb\n")],
        {"a": "of a", "b": "of b"},
        "",
    ),
    "a leading dot": ([("./a.jpg", JPG), ("./a.txt", b"of a")], {"a": "of a"}, ""),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_members_of_all_conventions_are_read_or_named(tmp_path, name):
    members, captions, passed_over = MEMBERS[name]
    source = open_source(str(write_members(tmp_path / "0.tar", members)))
    assert {ref.key: source.read(ref).caption for ref in source.refs()} == captions
    assert source.count == len(captions)
    said = "\n".join(source.passed_over.lines())
    assert re.search(passed_over, said) if passed_over else not said


def write_members(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def zstd(data):
    return pytest.importorskip("backports.zstd").compress(data)


@pytest.mark.parametrize(
    ("ending", "compress"),
    [
        ("tgz", gzip.compress),
        ("tar.gz", gzip.compress),
        ("tar.bz2", bz2.compress),
        ("tar.xz", lzma.compress),
        ("tar.zst", zstd),
        ("tar", gzip.compress),  # the name says otherwise
    ],
)
def test_compressed_tars_are_read_and_cut_ones_refused(tmp_path, ending, compress):
    data = compress(write_members(tmp_path / "whole", [A[0], B[0], A[1], B[1]]).read_bytes())
    path = tmp_path / f"0.{ending}"
    path.write_bytes(data)
    for source in (open_source(str(path)), open_source(str(tmp_path))):
        assert [source.read(ref).caption for ref in source.refs()] == ["of a", "of b"]
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=f"0.{ending} is not a whole tar file"):
        open_source(str(path))


def test_a_tar_without_its_end_is_refused_before_anything_is_read(tmp_path):
    path = write_members(tmp_path / "0.tar", A + B)
    data = path.read_bytes().rstrip(b"\0")
    path.write_bytes(data + bytes(-len(data) % 512))  # whole members, but no end mark
    with pytest.raises(UserError, match=r"begins neither a member nor the end mark"):
        open_source(str(path))


def test_a_tar_appended_to_another_is_read(tmp_path):
    first, second = (write_members(tmp_path / name, members).read_bytes() for name, members in (("1", A), ("2", B)))
    path = tmp_path / "0.tar"
    path.write_bytes(first + second)
    source = open_source(str(path))
    assert [source.read(ref).caption for ref in source.refs()] == ["of a", "of b"]


@pytest.mark.parametrize("inside", ["", "sub/"])
def test_tars_among_images_are_a_question(tmp_path, inside):
    write_members(tmp_path / "old.tar", A)
    (tmp_path / "readme.md").touch()
    (tmp_path / inside).mkdir(exist_ok=True)
    (tmp_path / inside / "1.png").write_bytes(image_bytes(format="PNG"))
    with pytest.raises(UserError, match=r"images \(1\.png\) as well as tar files \(old\.tar\).*--format folder or"):
        open_source(str(tmp_path))
    folder, tars = (open_source(str(tmp_path), format) for format in ("folder", "webdataset"))
    assert (folder.count, tars.count) == (1, 1)
    assert "  1 x file of another kind (.tar): old.tar" in folder.passed_over.lines()
    assert "  1 x file of another kind (.md): readme.md" in tars.passed_over.lines()


def test_a_sample_with_two_images_is_skipped(tmp_path):
    path = tar(tmp_path / "0.tar", ("1.jpg", image_bytes()), ("1.JPG", image_bytes(colour="blue")))
    (item,) = import_all(open_source(str(path)))
    assert item.reason == "its members cannot be used: it has two members of kind jpg"


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_damage_anywhere_in_a_source_s_tar_is_one_sentence(tmp_path, ending):
    """Compressed, the damage is found by other libraries than tarfile."""
    whole = tar(tmp_path / "whole.tar", *((f"{number}.jpg", image_bytes()) for number in range(9))).read_bytes()
    whole = gzip.compress(whole, mtime=0) if ending == ".tar.gz" else whole
    path, rng = tmp_path / f"0{ending}", random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged[: rng.choice((len(damaged), rng.randrange(len(damaged))))])
        with contextlib.suppress(UserError):
            list(TarSource(str(path), (path,)).refs())


def test_a_header_of_gigabytes_is_not_read_into_memory(tmp_path):
    """tarfile reads a long name whole, whatever length its header says."""
    member = tarfile.TarInfo("long")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 5_000_000_000
    with gzip.open(tmp_path / "0.tar.gz", "wb") as stream:
        stream.write(member.tobuf(tarfile.GNU_FORMAT) + bytes(10_000))
    with pytest.raises(UserError, match=r"0\.tar\.gz is not a whole tar file \(a header of 5000000000 bytes\)"):
        list(open_source(str(tmp_path / "0.tar.gz")).refs())


def test_a_given_caption_field_takes_precedence_over_the_text_member(tmp_path):
    members = ("1.jpg", image_bytes()), ("1.txt", b"a wall"), ("1.json", b'{"title": "a door"}')
    path = str(tar(tmp_path / "0.tar", *members))
    captions = [
        [source.read(ref).caption for ref in source.refs()]
        for source in (open_source(path), open_source(path, caption_field="title"))
    ]
    assert captions == [["a wall"], ["a door"]]


# Hugging Face


def test_parquet_through_datasets(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")
    rows = {"image": [{"bytes": image_bytes(), "path": None}] * 2, "text": ["a  wall", None], "n": [1, 2]}
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "n": datasets.Value("int64")}
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    for path in (tmp_path, tmp_path / "a.parquet"):
        source = open_source(str(path))
        assert source.format == "huggingface"
        samples = import_all(source)
        assert [sample.caption for sample in samples] == ["a wall", 'a picture that says "READ"']
        assert samples[0].key.endswith("_00000000")
    with pytest.raises(UserError, match=r"no column 'caption'; its columns: image, text, n"):
        open_source(str(tmp_path), caption_field="caption")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match="`datasets` cannot read"):
        open_source(str(tmp_path))


def test_an_imagefolder_through_datasets(tmp_path):
    pytest.importorskip("datasets", reason="the extra hf is not installed")
    (tmp_path / "1.jpg").write_bytes(image_bytes())
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.jpg", "text": "a wall"}\n')
    (sample,) = import_all(open_source(str(tmp_path), "huggingface"))
    assert sample.caption == "a wall"


def test_without_datasets_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"pip install 'vlad-diffusion\[hf\]'"):
        open_source(str(tmp_path))


# Which format


def test_an_unknown_format_lists_what_is_known(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n")
    (tmp_path / "empty.json").touch()
    with pytest.raises(UserError, match="Did you mean 'mario'") as caught:
        open_source(str(tmp_path), "maria")
    assert all(name in str(caught.value) for name in FORMATS)
    with pytest.raises(UserError, match="has no known format") as caught:
        open_source(str(tmp_path / "a.csv"))
    assert all(name in str(caught.value) for name in FORMATS)
    with pytest.raises(UserError, match="is empty"):
        open_source(str(tmp_path / "empty.json"))
    with pytest.raises(UserError, match="There is no file or folder"):
        open_source(str(tmp_path / "none"))
    with pytest.raises(UserError, match="name the annotation file in it"):
        open_source(str(tmp_path), "anyword")
    with pytest.raises(UserError, match="There is no folder"):
        open_source(str(tmp_path / "a.csv"), "anyword", images=tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    with pytest.raises(UserError, match="is neither a file nor a folder"):
        open_source(str(tmp_path / "pipe"), "mmocr")
