"""A folder of images: samples, skipped images with their reasons, and composed captions."""

import errno
import json
import os
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlad.data.decoding import decode_sample
from vlad.data.image_pixels import SOURCE_FORMATS
from vlad.data.importers.annotate import AnnotateOptions, annotate
from vlad.data.importers.caption_templates import compose_caption, strings_to_quote
from vlad.data.importers.folder import FolderSource
from vlad.data.importers.sources import MAX_SMALL_FILE_BYTES, Skipped, UniqueKeys
from vlad.data.shards.reader import read_members
from vlad.data.shards.writer import write_shards
from vlad.layout.polygons import box_polygon
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.types import Sample, TextLine
from vlad.utils.errors import UserError

OPEN = TextLine("OPEN", box_polygon(0.1, 0.1, 0.9, 0.3), confidence=0.9)


def save(path, colour="red", size=(40, 32), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def import_all(folder, lines=(OPEN,), **options):
    """The samples, decoded again, and what was skipped."""
    source = FolderSource(folder)
    options = AnnotateOptions(image_format="png", **options)
    items = [annotate(source, ref, lambda image: tuple(lines), options, False) for ref in source.refs()]
    assert source.count == len(items)
    return [item if isinstance(item, Skipped) else decode_sample(item.members, item.key) for item in items]


def import_one(path, lines=(OPEN,)):
    (item,) = import_all(path.parent, lines)
    return item


def refuse_reading(monkeypatch, path):
    """As a file of another user does; root may read everything."""
    plain = type(path).open

    def opened(self, *arguments, **options):
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return plain(self, *arguments, **options)

    monkeypatch.setattr(type(path), "open", opened)


# Finding


def test_images_are_found_in_subfolders_in_any_case_and_sorted(tmp_path):
    names = ("b.JPG", "a/z.png", "a/b/c.WebP", "a-2.png", "a.png", "c.jpeg", "notes.txt", "d.gif", ".h/x.png", ".y.png")
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()
    found = [ref.name for ref in FolderSource(tmp_path).refs()]
    # As their paths sort, though one folder is listed at a time.
    assert found == sorted(found) == ["a-2.png", "a.png", "a/b/c.WebP", "a/z.png", "b.JPG", "c.jpeg", "d.gif"]


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="There are no images"):
        FolderSource(tmp_path)


def test_a_link_to_a_folder_above_is_not_followed(tmp_path):
    save(tmp_path / "a/b.png")
    (tmp_path / "a/up").symlink_to(tmp_path)
    assert [ref.name for ref in FolderSource(tmp_path).refs()] == ["a/b.png"]


# Keys


def test_keys_have_no_dots_and_no_slashes():
    keys = UniqueKeys()
    assert [keys.key_of(name) for name in ("a b/c.d", "ä/日本", ".", "v1.2/x")] == [
        "a_b_c_d",
        "ä_日本",
        "image",
        "v1_2_x",
    ]


@given(st.lists(st.text(min_size=1, max_size=8), max_size=8))
def test_keys_are_unique_and_safe(names):
    maker = UniqueKeys()
    keys = [maker.key_of(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(re.fullmatch(r"[\w-]+", key) for key in keys)


def test_images_whose_keys_collide_all_arrive(tmp_path):
    for name in ("a.jpg", "a.png", "a b.png", "a_b.png", "a-2.png"):
        save(tmp_path / "in" / name)
    samples = import_all(tmp_path / "in")
    (tmp_path / "out").mkdir()
    write_shards(samples, tmp_path / "out", extension="jpg")
    keys = [key for key, members in read_members(str(tmp_path / "out/000000.tar")) if set(members) == {"jpg", "json"}]
    assert len(keys) == len(set(keys)) == 5


# Images


def test_an_image_becomes_a_sample(tmp_path):
    sample = import_one(save(tmp_path / "a.png", (200, 10, 20)))
    assert isinstance(sample, Sample)
    assert sample.image.shape == (32, 40, 3)
    assert (sample.image == (200, 10, 20)).all()
    assert sample.layout.lines == (OPEN,)
    assert (sample.key, sample.caption) == ("a", 'a picture that says "OPEN"')


def test_large_images_are_downsized(tmp_path):
    save(tmp_path / "wide.png", size=(400, 100))
    save(tmp_path / "tall.jpg", size=(80, 1280))
    save(tmp_path / "small.webp", size=(64, 40))
    shapes = [sample.image.shape[:2] for sample in import_all(tmp_path, max_side_pixels=64)]
    assert shapes == [(40, 64), (64, 4), (16, 64)]  # small, tall, wide


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise brings it upright
    image = Image.new("RGB", (60, 40), "white")
    image.paste("black", (0, 0, 10, 40))  # on the left as stored
    image.save(tmp_path / "a.png", exif=exif)
    upright = import_one(tmp_path / "a.png").image
    assert upright.shape == (60, 40, 3)
    assert (upright[:9] == 0).all()  # at the top as seen
    assert (upright[11:] == 255).all()


def test_every_mode_becomes_rgb_and_transparency_white(tmp_path):
    Image.new("RGBA", (32, 32), (10, 20, 30, 0)).save(tmp_path / "a.png")
    Image.new("L", (32, 32), 77).save(tmp_path / "b.png")
    Image.fromarray(np.full((32, 32), 0x80FF, dtype=np.uint16)).save(tmp_path / "c.png")
    Image.new("P", (32, 32)).save(tmp_path / "d.png", transparency=0)
    Image.new("CMYK", (32, 32), (0, 0, 0, 0)).save(tmp_path / "e.jpg")
    values = [int(sample.image[0, 0, 0]) for sample in import_all(tmp_path)]
    assert values == [255, 77, 0x80, 255, 255]


def test_an_image_with_the_wrong_extension_is_taken(tmp_path):
    save(tmp_path / "a.jpg", format="PNG")
    assert isinstance(import_one(tmp_path / "a.jpg"), Sample)


def png_claiming(path, width, height):
    data = bytearray(save(path).read_bytes())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(data)


def test_unusable_images_are_skipped_with_their_reason(tmp_path):
    (tmp_path / "a-empty.jpg").touch()
    (tmp_path / "b-text.png").write_text("not an image")
    whole = save(tmp_path / "c-cut.png", size=(200, 200)).read_bytes()
    (tmp_path / "c-cut.png").write_bytes(whole[: len(whole) // 2])
    png_claiming(tmp_path / "d-bomb.png", 9_000, 9_000)
    png_claiming(tmp_path / "e-bomb.png", 60_000, 60_000)
    (tmp_path / "f-gone.png").symlink_to(tmp_path / "nowhere.png")
    save(tmp_path / "g-caption.png")
    (tmp_path / "g-caption.txt").write_bytes(b"\xff\xfe caption")
    save(tmp_path / "h-small.png", size=(500, 31))
    save(tmp_path / "i-strip.png", size=(40, 641))
    save(tmp_path / "j-good.png")
    items = import_all(tmp_path)
    assert [item.name for item in items[:-1] if isinstance(item, Skipped)] == [
        path.name for path in sorted(tmp_path.glob("*.??g"))[:-1]
    ]
    reasons = [item.reason for item in items[:-1]]
    for reason, said in zip(
        reasons,
        (
            "empty",
            "damaged",
            "decode",
            "9000 x 9000",
            "limit",
            "no such file",
            "its caption is not UTF-8 text: g-caption.txt",
            "31",
            "641",
        ),
        strict=True,
    ):
        assert said in reason
    assert items[-1].key == "j-good"


# Captions and lines


def test_a_caption_beside_the_image_is_taken(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("\ufeff a red  wall \nsecond line\n", encoding="utf-8")
    save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("\n", encoding="utf-8")
    save(tmp_path / "c.png")
    (tmp_path / "caption.txt").write_text("not special", encoding="utf-8")
    made = 'a picture that says "OPEN"'
    assert [sample.caption for sample in import_all(tmp_path)] == ["a red wall second line", made, made]


@pytest.mark.parametrize("name", ["A.TXT", "a.txt", "a.caption", "a.png.txt", "a.PNG.Caption"])
@pytest.mark.parametrize("text", ["a wall", "\n\n  a\twall\r\n", "\ufeffa\nwall"])
def test_caption_files_are_found_by_all_their_names(tmp_path, name, text):
    save(tmp_path / "a.png")
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert [sample.caption for sample in import_all(tmp_path)] == ["a wall"]


@pytest.mark.parametrize(
    ("image", "row"),
    [
        ("more/A.png", "more/a.PNG"),
        ("more/a.png", "more\\a.png"),
        ("caf\u00e9.png", "cafe\u0301.png"),
        ("cafe\u0301.png", "caf\u00e9.png"),
        ("a.webp", "a.jpg"),  # converted since
        ("a.png", "./a.png"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata_rows_find_their_image(tmp_path, image, row, kind):
    save(tmp_path / image)
    if kind == "csv":
        (tmp_path / "metadata.csv").write_text(f'file_name,text\n{row},"a wall, white"\n', encoding="utf-8")
    else:
        line = json.dumps({"file_name": row, "text": "a wall,\nwhite"})
        (tmp_path / "metadata.jsonl").write_text(line, encoding="utf-8")
    assert [sample.caption for sample in import_all(tmp_path)] == ["a wall, white"]
    source = FolderSource(tmp_path)
    assert not source.passed_over.counts


def test_what_is_passed_over_is_counted_and_named(tmp_path):
    save(tmp_path / "a.png")
    for name in ("movie.mp4", "b.psd", "c.psd", "d.psd", "e.psd", "noext", ".hidden.png", "._a.png", "lonely.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    rows = [{"file_name": "gone.png", "text": "a wall"}, {"file_name": "a.png", "text": "a door"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = FolderSource(tmp_path)
    assert source.count == 1
    assert source.passed_over.lines() == [
        "  4 x file of another kind (.psd): b.psd, c.psd, d.psd, ...",
        "  2 x hidden file: ._a.png, .hidden.png",
        "  1 x hidden folder: .git/",
        "  1 x link to a folder: link/",
        "  1 x caption without an image: lonely.txt",
        "  1 x file of another kind (.mp4): movie.mp4",
        "  1 x file of another kind (no extension): noext",
        "  1 x row of the metadata without an image: gone.png",
    ]


def test_photographs_of_a_telephone_name_the_extra_that_reads_them(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    (tmp_path / "b.HEIC").write_bytes(b"x")
    formats = {kind: name for kind, name in SOURCE_FORMATS.items() if name != "HEIF"}
    monkeypatch.setattr("vlad.data.importers.folder.SOURCE_FORMATS", formats)
    source = FolderSource(tmp_path)
    assert source.count == 1
    (line,) = source.passed_over.lines()
    assert line == "  1 x file of another kind (.HEIC; pip install 'vlad-diffusion[heic]' reads it): b.HEIC"


def test_captions_of_a_metadata_file_are_taken(tmp_path):
    """As `datasets` lays an imagefolder out: the path is relative to the file, which may stand higher up."""
    for name in ("a.png", "b.png", "more/c.png", "more/d.png"):
        save(tmp_path / name)
    (tmp_path / "b.txt").write_text("beside it", encoding="utf-8")
    rows = [
        {"file_name": "a.png", "text": "the  first"},
        {"file_name": "b.png", "text": "overruled"},
        {"file_name": "more/c.png", "text": None, "caption": "the third"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    captions = [sample.caption for sample in import_all(tmp_path)]
    assert captions == ["the first", "beside it", "the third", 'a picture that says "OPEN"']


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", 'line 2 has no text in field "file_name"'),
        ('{"text": "x"}', 'line 2 has no text in field "file_name"'),
        ('{"file_name": "a.png", "text": 5}', 'line 2: field "text" is not text'),
    ],
)
def test_a_wrong_line_of_a_metadata_file_is_named(tmp_path, line, said):
    save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "a.png"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(UserError, match=said):
        FolderSource(tmp_path)


def test_a_given_caption_field_takes_precedence_over_the_caption_file(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    (tmp_path / "a.txt").write_text("beside it", encoding="utf-8")
    (tmp_path / "b.txt").write_text("beside it too", encoding="utf-8")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "title": "asked for"}\n', encoding="utf-8")
    source = FolderSource(tmp_path, "title")
    assert [source.read(ref).caption for ref in source.refs()] == ["asked for", "beside it too"]
    with pytest.raises(UserError, match='has text in field "titel"'):
        FolderSource(tmp_path, "titel")


def test_an_unreadable_metadata_file_is_refused(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    metadata = tmp_path / "metadata.jsonl"
    os.mkfifo(metadata)  # reading it would wait for ever
    with pytest.raises(UserError, match=r"metadata\.jsonl is not a file"):
        FolderSource(tmp_path)
    metadata.unlink()
    monkeypatch.setattr("vlad.data.importers.folder.MAX_LINE_BYTES", 1000)
    metadata.write_text('{"file_name": "a.png"}\n{"file_name": "' + "a" * 2000, encoding="utf-8")
    with pytest.raises(UserError, match="line 2 is over"):
        FolderSource(tmp_path)
    metadata.write_text("x", encoding="utf-8")
    refuse_reading(monkeypatch, metadata)
    with pytest.raises(UserError, match=r"metadata\.jsonl cannot be read \(Permission denied\)"):
        FolderSource(tmp_path)


def test_an_overlong_caption_file_is_not_read_into_memory(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    caption = tmp_path / "a.txt"
    with caption.open("wb") as stream:
        stream.truncate(MAX_SMALL_FILE_BYTES + 1)
    assert import_one(tmp_path / "a.png").reason == "a.txt is too large: over 4 MB"
    caption.write_text("x", encoding="utf-8")
    refuse_reading(monkeypatch, caption)
    assert import_one(tmp_path / "a.png").reason == "a.txt cannot be read: Permission denied"


def test_doubtful_lines_are_kept_but_not_valid(tmp_path):
    doubtful = TextLine("XQ", box_polygon(0.1, 0.5, 0.9, 0.7), confidence=0.49)
    sample = import_one(save(tmp_path / "a.png"), (doubtful, OPEN))
    assert [(line.text, line.valid) for line in sample.layout.lines] == [("OPEN", True), ("XQ", False)]
    assert sample.caption == 'a picture that says "OPEN"'


def test_lines_that_run_up_or_down_are_not_valid(tmp_path):
    tall, letter = box_polygon(0.1, 0.1, 0.2, 0.9), box_polygon(0.4, 0.1, 0.5, 0.9)
    lines = (TextLine("SPINE", tall), TextLine("I", letter), OPEN)
    sample = import_one(save(tmp_path / "a.png"), lines)
    assert {line.text for line in sample.layout.lines if line.valid} == {"I", "OPEN"}


WIDE = box_polygon(0.1, 0.1, 0.9, 0.3)
READINGS = {
    "read": (TextLine("OPEN", WIDE), True),
    "blanks around": (TextLine("  OPEN\u3000 ", WIDE), True),
    "spaced letters": (TextLine("SALE", box_polygon(0.05, 0.1, 0.95, 0.28)), True),
    "found and not read": (TextLine("", WIDE, confidence=0.0), False),
    "blanks": (TextLine(" \u3000", WIDE), False),
    "marks alone": (TextLine("-:.", WIDE), False),
    "upside down": (TextLine("OPEN", WIDE[2:] + WIDE[:2]), False),
    "too short": (TextLine("AB", box_polygon(0.0, 0.1, 1.0, 0.2)), False),
    "too long": (TextLine("A LONG SENTENCE OF WORDS", box_polygon(0.1, 0.1, 0.4, 0.4)), False),
    "one letter for all": (TextLine("A", box_polygon(0.0, 0.0, 1.0, 1.0)), False),
    "a letter": (TextLine("A", box_polygon(0.1, 0.1, 0.3, 0.36)), True),
    "han": (TextLine("出口", box_polygon(0.1, 0.1, 0.5, 0.35)), True),
}


@pytest.mark.parametrize("name", READINGS)
def test_a_reading_is_believed_only_where_it_can_be(tmp_path, name):
    reading, believed = READINGS[name]
    sample = import_one(save(tmp_path / "a.png"), (reading,))
    (read,) = sample.layout.lines
    assert (read.text, read.valid) == (" ".join(reading.text.split()), believed)
    assert sample.caption == (f'a picture that says "{read.text}"' if believed else "a picture")


def test_an_image_is_without_text_only_where_the_detector_finds_none(tmp_path):
    assert import_one(save(tmp_path / "a.png"), ()).caption == "a picture without text"


def line(text, top, height=0.1, **fields):
    return TextLine(text, box_polygon(0.1, top, 0.9, top + height), **fields)


def composed(lines, max_strings=3):
    return compose_caption(strings_to_quote(lines, max_strings), bool(lines))


def test_the_largest_lines_are_quoted_in_reading_order():
    lines = [line("small", 0.0, 0.05), line("B", 0.1, 0.2), line("C", 0.4, 0.1), line("D", 0.6, 0.3)]
    assert composed(lines, 3) == 'a picture that says "B", "C" and "D"'
    assert composed(lines, 2) == 'a picture that says "B" and "D"'
    assert composed(lines, 1) == 'a picture that says "D"'


def test_equal_lines_are_distinguished():
    lines = [line("SALE", 0.0), line("SALE", 0.0), line("SALE", 0.0)]
    assert composed(lines, 2) == 'a picture that says "SALE" and "SALE"'


def test_captions_without_legible_text():
    assert composed([], 3) == "a picture without text"
    assert composed([line("XQ", 0.1, valid=False)], 3) == "a picture"
    assert composed([line('"', 0.1)], 3) == "a picture"


def test_a_long_line_is_quoted_whole():
    assert f'"{"LONG " * 20}LINE"' in composed([line("LONG " * 20 + "LINE", 0.1)], 3)


@pytest.mark.parametrize(
    ("text", "quoted"),
    [('"HI"', "HI"), ('SAY "HI" NOW', "SAY 'HI' NOW"), ("DON'T", "DON'T"), ("“HI”", "“HI”"), ("A\n B", "A B")],
)
def test_quotation_marks_in_the_text_do_not_end_the_quotation(text, quoted):
    caption = composed([line(text, 0.1), line("OPEN", 0.3)], 3)
    assert parse_prompt(caption).strings == (quoted, "OPEN")


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=8), max_size=4))
def test_every_made_caption_parses_back(texts):
    lines = [line(text, number / 5) for number, text in enumerate(texts)]
    caption = composed(lines, 4)
    assert all('"' not in string for string in parse_prompt(caption).strings)
    assert caption.count('"') == 2 * len(parse_prompt(caption).strings)


@pytest.mark.parametrize("mistake", [{"max_side_pixels": 8}, {"max_strings": 0}])
def test_invalid_options_are_refused(mistake):
    with pytest.raises(UserError):
        AnnotateOptions(**mistake)
