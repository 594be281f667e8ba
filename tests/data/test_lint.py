"""Shard lint: every fault is found with its shard and key, and sound shards have none."""

import dataclasses
import io
import itertools
import json
import os
import struct
import tarfile
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from shapely.geometry import LinearRing

from vlad.data.decoding import encode_sample
from vlad.data.lint.contact_sheets import contact_sheet, draw_card
from vlad.data.lint.lint_report import LintReport, tables, text_report, write_lint_page
from vlad.data.lint.linter import KeyIndex, lint_manifests, lint_shards
from vlad.data.lint.options import Launch, LintOptions
from vlad.data.lint.sample_checks import KINDS, Finding, crosses_itself, line_faults
from vlad.data.lint.sample_statistics import HEIGHT_EDGES_PIXELS, LENGTH_EDGES, bin_names, bin_of, text_height
from vlad.data.lint.shard_checks import ShardSet, list_set
from vlad.data.options import FetchOptions, SyntheticOptions
from vlad.data.shards.reader import index_shards
from vlad.data.shards.writer import shard_entry, write_manifest, write_shards
from vlad.data.signs import render_sign
from vlad.data.storage.shard_cache import ShardCache
from vlad.layout.polygons import box_polygon
from vlad.types import Layout, Sample, TextLine
from vlad.utils.errors import UserError
from vlad.utils.foreign_text import printable_line

SIGNS = [render_sign(SyntheticOptions(size_pixels=32), index) for index in range(150)]
BOX = box_polygon(0.1, 0.1, 0.9, 0.4)


def members_of(sign, **record):
    """A sample's members, its record changed; a field of None is left out."""
    encoded = encode_sample(sign)
    changed = {**json.loads(encoded["json"]), **record}
    changed = {name: value for name, value in changed.items() if value is not None}
    return {**encoded, "json": json.dumps(changed).encode()}


def line(text="HELLO", polygon=BOX, **fields):
    return {"text": text, "polygon": [list(point) for point in polygon], **fields}


def write_tar(path, samples):
    """Writes members as they are given: (key, {kind: bytes}), or (name, bytes), or a header of one's own."""
    with tarfile.open(path, "w") as archive:
        for name, data in samples:
            if isinstance(name, tarfile.TarInfo):
                archive.addfile(name)
                continue
            for kind, content in data.items() if isinstance(data, dict) else [("", data)]:
                entry = tarfile.TarInfo(f"{name}.{kind}" if kind else name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return path


def png_header_of(width, height):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def check(pattern, tmp_path, **options):
    """The report and all findings."""
    findings = []
    cache = ShardCache(FetchOptions(str(tmp_path / "cache")))
    report = lint_shards(
        list_set(str(pattern)), LintOptions(**options), cache, findings.append, lambda inspection: None
    )
    return report, findings


def found(pattern, tmp_path, **options):
    return [(finding.kind, finding.key) for finding in check(pattern, tmp_path, **options)[1]]


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "shards").mkdir()
    return tmp_path / "shards"


# Sound


def test_a_sound_set_is_counted_and_has_no_findings(directory, tmp_path):
    write_manifest(directory, write_shards(SIGNS, directory, samples_per_shard=70), {})
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    report, findings = check(directory, tmp_path, resolutions=(16, 32), max_aspect=1.0, bucket_step_pixels=16)
    assert (findings, report.is_sound) == ([], True)
    lines = [line for sign in SIGNS for line in sign.layout.lines]
    counts = report.counts
    assert (report.shards, counts.samples, counts.sound, counts.without_text) == (3, 150, 150, 0)
    assert counts.lines == counts.valid_lines == len(lines)
    for number, name in enumerate(bin_names(LENGTH_EDGES)):
        low, _, high = name.partition("-")
        if high:
            assert counts.lengths[number] == sum(int(low) <= len(line.text) <= int(high) for line in lines)
    assert counts.lengths.total() == counts.heights_pixels.total() == counts.heights_percent.total() == len(lines)
    assert [table.rows for table in tables(report)][-1] == (("32 x 32", 150),)
    assert counts.bytes == sum(len(data) for name, data in before.items() if name.endswith(".tar"))
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert "No findings: the set is sound." in text_report(report)


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}/*.tar", "{}/{{000000..000001}}.tar", "file://{}"])
def test_manifests_are_found_from_any_pattern(directory, tmp_path, spelling):
    write_manifest(directory, write_shards(SIGNS[:6], directory, samples_per_shard=3), {})
    report, findings = check(spelling.format(directory), tmp_path)
    assert findings == []
    assert report.shard_set.listed_samples == 6


def test_relative_spellings_find_the_manifest(directory, tmp_path, monkeypatch):
    write_manifest(directory, write_shards(SIGNS[:3], directory), {})
    monkeypatch.chdir(tmp_path)
    assert list_set("./shards//*.tar").listed_samples == 3


# One fault at a time


SIGN = SIGNS[0]
FAULTS = {
    "no image": ({"json": members_of(SIGN)["json"]}, "incomplete"),
    "no record": ({"png": members_of(SIGN)["png"]}, "incomplete"),
    "garbage for an image": ({**members_of(SIGN), "png": b"no image"}, "image"),
    "half an image": ({**members_of(SIGN), "png": members_of(SIGN)["png"][:200]}, "image"),
    "another format than its name says": (
        {"jpg": members_of(SIGN)["png"], "json": members_of(SIGN)["json"]},
        "image",
    ),
    "a pixel bomb": ({**members_of(SIGN), "png": png_header_of(10_000, 8_000)}, "bomb"),
    "a pixel bomb that Pillow refuses": ({**members_of(SIGN), "png": png_header_of(60_000, 60_000)}, "bomb"),
    "no JSON": ({**members_of(SIGN), "json": b"{"}, "record"),
    "a list": ({**members_of(SIGN), "json": b"[]"}, "record"),
    "too deep": ({**members_of(SIGN), "json": b"[" * 100_000}, "record"),
    "an unknown field": (members_of(SIGN, lines=[line(caption="x")]), "record"),
    "no caption": (members_of(SIGN, caption=None), "caption"),
    "an empty caption": (members_of(SIGN, caption="  "), "caption"),
    "a number for a caption": (members_of(SIGN, caption=5), "record"),
    "a line without text": (members_of(SIGN, lines=[line(" ")]), "text"),
    "a polygon outside": (members_of(SIGN, lines=[line(polygon=box_polygon(0.5, 0.5, 1.2, 0.6))]), "outside"),
    "a crossed polygon": (members_of(SIGN, lines=[line(polygon=(BOX[0], BOX[2], BOX[1], BOX[3]))]), "crossing"),
    "a polygon of very many points": (members_of(SIGN, lines=[line(polygon=[(0.5, 0.5)] * 201)]), "crossing"),
    "a polygon without area": (members_of(SIGN, lines=[line(polygon=[(0.5, 0.5)] * 4)]), "flat"),
    "a script without a font": (members_of(SIGN, lines=[line("什么")]), "font"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_with_shard_and_key(directory, tmp_path, fault):
    members, kind = FAULTS[fault]
    path = write_tar(directory / "0.tar", [("good", members_of(SIGN)), ("bad", members), ("last", members_of(SIGN))])
    report, findings = check(directory, tmp_path)
    assert [(finding.kind, finding.shard, finding.key) for finding in findings] == [(kind, str(path), "bad")]
    assert report.counts.sound == 2
    assert report.found == {kind: 1}
    text = text_report(report)
    assert KINDS[kind] in text
    assert f"{path}, bad: " in text
    assert findings[0].detail


def test_scripts_without_a_font_are_counted(directory, tmp_path):
    lines = [line("AB"), line("A什么"), line("么"), line("หน้า"), line("什", valid=False)]
    write_tar(directory / "0.tar", [("a", members_of(SIGN, lines=lines))])
    report, findings = check(directory, tmp_path)
    assert [finding.kind for finding in findings] == ["font"] * 3
    assert report.counts.fontless == {"cjk": 2, "thai": 1}
    assert "cjk          2" in text_report(report)


def test_illegible_lines_may_be_empty_or_of_any_script(directory, tmp_path):
    lines = [line("什么", valid=False), line("", valid=False)]
    write_tar(directory / "0.tar", [("a", members_of(SIGN, lines=lines))])
    report, findings = check(directory, tmp_path)
    assert findings == []
    assert (report.counts.lines, report.counts.valid_lines, report.counts.without_text) == (2, 0, 1)


def test_members_that_are_never_read_are_named(directory, tmp_path):
    link = tarfile.TarInfo("b.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    samples = [
        ("a", {**members_of(SIGN), "pickle": b"x", "txt": b"a note"}),
        ("/absolute/a.png", b"x"),
        ("../a.json", b"x"),
        (link, b""),
        ("noname", b"x"),
    ]
    write_tar(directory / "0.tar", samples)
    assert found(directory, tmp_path) == [
        ("name", "/absolute/a.png"),
        ("name", "../a.json"),
        ("member", "a.pickle"),
        ("name", "b.png"),
        ("member", "noname"),
    ]


def test_a_duplicate_member_is_named(directory, tmp_path):
    members = members_of(SIGN)
    write_tar(directory / "0.tar", [("a", members), ("a.PNG", members["png"])])
    assert found(directory, tmp_path) == [("double", "a")]


@pytest.mark.parametrize("kept_bytes", [0, 300, 5_000])
def test_a_damaged_shard_is_named_and_the_rest_checked(directory, tmp_path, kept_bytes):
    write_shards(SIGNS[:8], directory, samples_per_shard=4)
    broken = directory / "000000.tar"
    broken.write_bytes(broken.read_bytes()[:kept_bytes])
    report, findings = check(directory, tmp_path)
    assert findings[0].kind == "shard"
    # The sample that the end cuts through has lost a member.
    assert {(finding.kind, finding.shard) for finding in findings[1:]} <= {("incomplete", str(broken))}
    assert report.shards == 2
    assert report.counts.sound >= 4


def test_empty_shards_and_paths_that_are_no_files_are_named(directory, tmp_path):
    write_tar(directory / "0.tar", [])
    os.mkfifo(directory / "1.tar")
    (directory / "2.tar").symlink_to("2.tar")
    write_tar(directory / "3.tar", [("a", members_of(SIGN))])
    (directory / "4.tar").mkdir()
    report, findings = check(directory, tmp_path)
    assert [(finding.kind, finding.detail) for finding in findings] == [
        ("shard", "it contains no samples"),
        ("shard", "It is no file"),
        ("shard", "Too many levels of symbolic links"),
        ("shard", "Is a directory"),
    ]
    assert report.counts.sound == 1


def test_a_dangling_link_is_a_finding_of_the_manifests_too(directory):
    write_manifest(directory, write_shards(SIGNS[:4], directory), {})
    shard = directory / "000000.tar"
    shard.unlink()
    shard.symlink_to("gone")
    findings = []
    lint_manifests(list_set(str(directory)), LintOptions(), findings.append)
    assert [(finding.kind, finding.detail) for finding in findings] == [("shard", "No such file or directory")]
    with pytest.raises(UserError, match=r"000000\.tar cannot be opened \(No such file"):
        index_shards(str(directory))


def test_duplicate_keys_are_found_across_shards(directory, tmp_path):
    for name, keys in (("0", "abc"), ("1", "da"), ("2", "aec")):
        write_tar(directory / f"{name}.tar", [(key, members_of(SIGN)) for key in keys])
    _, findings = check(directory, tmp_path)
    assert {(finding.kind, finding.key, finding.shard) for finding in findings} == {
        ("duplicate", "a", str(directory / "1.tar")),
        ("duplicate", "c", str(directory / "2.tar")),
    }
    assert any(finding.detail.startswith("3 times: ") for finding in findings)


def test_a_key_that_occurs_twice_in_one_shard_is_a_duplicate(directory, tmp_path):
    write_tar(directory / "0.tar", [(key, members_of(SIGN)) for key in "aba"])
    assert found(directory, tmp_path) == [("duplicate", "a")]


@given(st.lists(st.tuples(st.text(), st.integers(0, 3)), max_size=40))
def test_the_key_index_finds_what_a_dictionary_would(tmp_path_factory, notes):
    index = KeyIndex(tmp_path_factory.mktemp("keys"))
    expected = {}
    for key, shard in notes:
        index.add(key, shard)
        expected.setdefault(key, []).append(shard)
    assert dict(index.duplicates()) == {key: shards for key, shards in expected.items() if len(shards) > 1}


# Manifests


def test_a_shard_that_differs_from_its_manifest_is_named(directory, tmp_path):
    entries = write_shards(SIGNS[:9], directory, samples_per_shard=3)
    entries[0]["samples"] = 4
    entries[1]["sha256"] = "0" * 64
    (directory / "000002.tar").write_bytes((directory / "000002.tar").read_bytes() + bytes(512))
    write_manifest(directory, [*entries, {**entries[0], "name": "gone.tar"}], {})
    write_tar(directory / "more.tar", [("more", members_of(SIGN))])
    _, findings = check(directory, tmp_path)
    assert {(finding.kind, finding.shard.rpartition("/")[2]) for finding in findings} == {
        ("manifest", name) for name in ("000000.tar", "000001.tar", "000002.tar", "gone.tar", "more.tar")
    }
    details = {finding.shard.rpartition("/")[2]: finding.detail for finding in findings}
    assert details["000000.tar"] == "it has 3 samples, the manifest says 4"
    assert details["000001.tar"] == "its checksum differs from the manifest's"
    assert "bytes, the manifest says" in details["000002.tar"]
    assert details["gone.tar"] == "listed in the manifest, but missing"
    # A pattern for some shards says nothing about the others.
    assert "gone.tar" not in str(list_set(f"{directory}/00000?.tar").findings)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"shards": [{}]}', b'{"shards": 3}', b"[" * 100_000])
def test_a_broken_manifest_is_a_finding(directory, tmp_path, content):
    write_shards(SIGNS[:3], directory)
    (directory / "manifest.json").write_bytes(content)
    report, findings = check(directory, tmp_path)
    assert [finding.kind for finding in findings] == ["manifest"]
    assert report.counts.sound == 3


def test_a_quick_report_reads_no_shard(directory, tmp_path):
    entries = write_shards(SIGNS[:6], directory, samples_per_shard=3)
    statistics = {"lines": 4, "valid_lines": 3, "scripts": {"latin": 3}}
    write_manifest(directory, [{**entry, "statistics": statistics} for entry in entries], {})
    for entry in entries:  # as long as they were, and no tars any more
        (directory / entry["name"]).write_bytes(bytes(entry["bytes"]))
    findings = []
    report = lint_manifests(list_set(str(directory)), LintOptions(), findings.append)
    assert findings == []
    assert (report.samples, report.counts.lines, report.counts.valid_lines) == (6, 8, 6)
    assert "latin 6" in text_report(report)
    assert "no shard was read" in text_report(report)
    (directory / "000001.tar").write_bytes(b"")
    report = lint_manifests(list_set(str(directory)), LintOptions(), findings.append)
    assert [finding.detail for finding in findings] == [
        f"it has 0 bytes, the manifest says {entries[1]['bytes']}",
    ]


def test_a_quick_report_needs_a_manifest(directory):
    write_shards(SIGNS[:3], directory)
    with pytest.raises(UserError, match=r"no manifest\.json .* leave out --quick"):
        lint_manifests(list_set(str(directory)), LintOptions(), lambda finding: None)


# The launch


def test_a_launch_needs_one_batch_per_rank(directory, tmp_path):
    write_manifest(directory, [shard_entry(path, 12) for path in make_shard(directory, 12)], {})
    assert found(directory, tmp_path, launch=Launch(2, 6)) == []
    assert found(directory, tmp_path, launch=Launch(2, 9)) == [("launch", None)]
    report = lint_manifests(list_set(str(directory)), LintOptions(launch=Launch(2, 9)), lambda finding: None)
    assert "12 samples are too few for 2 ranks x batches of 9: at least 18" in text_report(report)
    with pytest.raises(UserError, match="at least 1"):
        Launch(0)


def make_shard(directory, count):
    write_shards(SIGNS[:count], directory)
    return sorted(directory.glob("*.tar"))


# Bounds


def test_examples_and_images_are_few_whatever_is_found(directory, tmp_path):
    lines = [line("什么")]
    write_tar(directory / "0.tar", [(f"{number:04d}", members_of(SIGN, lines=lines)) for number in range(200)])
    write_tar(directory / "1.tar", [(f"s{number:04d}", members_of(SIGN)) for number in range(200)])
    options = {"examples": 3, "images": 5, "images_per_kind": 2}
    report, findings = check(directory, tmp_path, **options)
    assert len(findings) == report.found["font"] == 200
    assert len(report.examples["font"]) == 3
    assert [(heading, len(cards)) for heading, cards in report.cards()] == [
        ("sound samples from the whole set", 5),
        (KINDS["font"], 2),
    ]
    again = check(directory, tmp_path, **options)[0]
    assert again.cards() == report.cards()  # the same every time
    assert "... and 197 more" in text_report(report)


def test_cards_show_the_samples_of_the_lowest_rank(directory, tmp_path):
    """Not the first ones: they come from all over the set."""
    write_shards(SIGNS, directory, samples_per_shard=30)
    every = check(directory, tmp_path, images=150)[0].cards()[0][1]
    few = check(directory, tmp_path, images=10)[0].cards()[0][1]
    assert len(every) == 150
    assert few == sorted(every, key=lambda card: card.rank)[:10]
    assert len({card.shard for card in few}) > 2


def test_an_interrupt_ends_with_what_was_read(directory, tmp_path):
    write_shards(SIGNS, directory, samples_per_shard=10)
    seen = itertools.count(1)

    def interrupt_at_the_third(inspection):
        if next(seen) == 3:
            raise KeyboardInterrupt

    cache = ShardCache(FetchOptions(str(tmp_path / "cache")))
    report = lint_shards(
        list_set(str(directory)),
        LintOptions(launch=Launch(batch_size=100)),
        cache,
        lambda finding: None,
        interrupt_at_the_third,
    )
    assert report.interrupted
    assert report.counts.samples == 30
    assert report.found["launch"] == 0  # not yet known
    assert "Interrupted" in text_report(report)
    assert "3 of 15" in text_report(report)


# Geometry


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=4, max_size=8, unique=True))
def test_crossings_are_those_that_shapely_finds(points):
    # In general position: neither counts sides that merely touch as a crossing.
    turned = [(x + 0.37 * y * y / 50, y - 0.21 * x * x / 50) for x, y in points]
    triples = itertools.combinations(turned, 3)
    flat = any(abs((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])) < 1e-6 for a, b, c in triples)
    if not flat:
        assert crosses_itself(tuple(turned)) == (not LinearRing(turned).is_simple)


def test_a_line_s_height_is_that_of_its_ends():
    box = TextLine("A", box_polygon(0.1, 0.2, 0.9, 0.3))
    assert text_height(box, height_pixels=200, width_pixels=50) == pytest.approx(20)
    upright = TextLine("A", ((0.6, 0.1), (0.6, 0.9), (0.5, 0.9), (0.5, 0.1)))  # written downwards
    assert text_height(upright, height_pixels=200, width_pixels=50) == pytest.approx(5)


def test_rounding_at_the_edge_is_no_finding():
    assert list(line_faults(TextLine("A", box_polygon(-0.0005, 0, 1.0005, 0.2)))) == []
    assert [kind for kind, _ in line_faults(TextLine("A", box_polygon(-0.01, 0, 1, 0.2)))] == ["outside"]


@given(st.floats(0, 1000))
def test_a_value_is_in_the_bin_that_names_it(value):
    edges = (*HEIGHT_EDGES_PIXELS, float("inf"))
    number = bin_of(value, HEIGHT_EDGES_PIXELS)
    assert edges[number] <= value < edges[number + 1]
    assert len(bin_names(HEIGHT_EDGES_PIXELS)) == len(HEIGHT_EDGES_PIXELS)


# Cards and pages


def a_card(sample, faults=()):
    return draw_card(sample, "s/0.tar", tuple(faults), 0.5)


def pixels(card):
    return np.asarray(Image.open(io.BytesIO(card.jpeg))).astype(int)


@pytest.mark.parametrize(
    ("made", "strong"),
    [
        (TextLine("HELLO", BOX), 1),
        (TextLine("什么", BOX), 0),
        (TextLine("", ((5, 5), (1e9, 5), (9, 9), (-1e9, 9)), valid=False), None),
    ],
    ids=["sound: green", "faulty: red", "far outside: its number alone"],
)
def test_a_polygon_is_drawn_in_the_colour_of_its_state(made, strong):
    grey = np.full((40, 80, 3), 128, np.uint8)
    drawn = pixels(a_card(Sample("a", grey, "a wall", Layout((made,)))))
    assert drawn.shape == (160, 320, 3)
    coloured = drawn[np.ptp(drawn, axis=2) > 60]
    if strong is None:
        assert len(coloured) < 100
    else:
        assert len(coloured) > 200
        assert (coloured.argmax(axis=1) == strong).mean() > 0.95


def test_images_of_any_shape_have_cards():
    for shape in ((1, 1), (1, 500), (700, 3), (1000, 900)):
        sample = Sample("a", np.zeros((*shape, 3), np.uint8), "a", Layout((TextLine("A", BOX),)))
        assert max(pixels(a_card(sample)).shape) == 320


def test_a_contact_sheet_shows_every_card():
    cards = [a_card(sign) for sign in SIGNS[:7]]
    sheet = contact_sheet(cards, columns=3, cell_pixels=50)
    assert contact_sheet(cards[:1], columns=3, cell_pixels=50).width < sheet.width
    assert np.asarray(sheet)[-60:, :58].std() > 10  # the seventh, alone in its row
    assert np.asarray(sheet)[-60:, 66:].std() == 0


def test_text_from_shards_is_escaped_on_the_page(tmp_path):
    evil = '<script>alert("x")</script>'
    sample = dataclasses.replace(SIGNS[0], key=evil, caption=evil, layout=Layout((TextLine(evil, BOX, evil),)))
    card = draw_card(sample, evil, (("font", evil),), 0.5)
    report = LintReport(ShardSet(evil, (), 0, ()), LintOptions())
    report.counts.fontless[evil] = 1
    report.keep_card(card)
    report.note(Finding("font", evil, evil, evil))
    write_lint_page(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 8
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")


def test_text_from_shards_is_escaped_for_the_terminal(directory, tmp_path):
    assert printable_line("a\x1b[2J\nб什") == "a\\x1b[2J\\nб什"
    write_tar(directory / "0.tar", [("a\x1b[2J", {**members_of(SIGN), "png": b"x"})])
    assert "\x1b" not in text_report(check(directory, tmp_path)[0])


@pytest.mark.parametrize(
    "mistake",
    [{"max_aspect": float("nan")}, {"max_aspect": 1e300}, {"resolutions": (10**8,)}, {"bucket_step_pixels": 0}],
)
def test_impossible_training_shapes_are_refused(mistake):
    with pytest.raises(UserError, match="must be from 1 to"):
        LintOptions(**mistake)
