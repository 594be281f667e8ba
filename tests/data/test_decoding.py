"""Decoding and encoding of samples: round trips, and what is refused."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlad.data import decoding
from vlad.data.decoding import IMAGE_FORMATS, BadSample, decode_image, decode_sample, encode_sample
from vlad.types import Layout, ObjectBox, Sample, TextLine

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)

# What UTF-8 can hold: no lone surrogates.
words = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
points = st.tuples(st.floats(-2, 2), st.floats(-2, 2))
lines = st.builds(
    TextLine,
    text=words,
    polygon=st.lists(points, min_size=4, max_size=12).map(tuple),
    language=st.none() | words,
    font=st.none() | words,
    colour=st.none() | words,
    valid=st.booleans(),
    confidence=st.none() | st.floats(0, 1),
)


def encoded_image(extension):
    return encode_sample(Sample("key", IMAGE, "a sign", Layout(())), extension)[extension]


@settings(max_examples=100, deadline=None)
@given(st.lists(lines, max_size=4), words.filter(str.strip), st.none() | words)
def test_a_sample_comes_back_as_it_was(drawn, caption, source):
    boxes = (ObjectBox("a sign", (0.0, 0.1, 0.5, 1.0)),)
    sample = Sample("key", IMAGE, caption, Layout(tuple(drawn)), boxes, source, "CC0-1.0")
    back = decode_sample(encode_sample(sample), "key")
    assert np.array_equal(back.image, IMAGE)
    assert (back.key, back.caption, back.objects) == ("key", caption, boxes)
    assert (back.source, back.licence) == (source, "CC0-1.0")
    assert len(back.layout.lines) == len(drawn)
    for line, original in zip(back.layout.lines, drawn, strict=True):
        # Coordinates are kept to five decimals: a hundredth of a pixel at 1,000 pixels.
        assert np.allclose(line.polygon, original.polygon, atol=5.1e-6)
        assert (line.text, line.language, line.font) == (original.text, original.language, original.font)
        assert (line.colour, line.valid, line.confidence) == (original.colour, original.valid, original.confidence)


@pytest.mark.parametrize("extension", ["jpg", "webp"])
def test_a_lossy_image_stays_close(extension):
    flat = np.full((16, 16, 3), (200, 30, 40), dtype=np.uint8)
    back = decode_sample(encode_sample(Sample("key", flat, "a sign", Layout(())), extension), "key")
    assert back.image.shape == flat.shape
    assert np.abs(back.image.astype(int) - flat).max() < 12


def test_an_image_of_another_mode_becomes_rgb():
    buffer = io.BytesIO()
    Image.new("L", (4, 3), 7).save(buffer, "PNG")
    assert (decode_image(buffer.getvalue(), "png") == np.full((3, 4, 3), 7)).all()


def claiming(width, height):
    """A small PNG whose header claims another size."""
    data = bytearray(encoded_image("png"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_a_pixel_bomb_is_refused_by_its_header(side):
    """9,000 x 9,000 is over our limit alone, 60,000 x 60,000 over Pillow's too."""
    with pytest.raises(BadSample):
        decode_image(claiming(side, side), "png")


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", encoded_image("png")[:-30], encoded_image("jpg")],
    ids=["empty", "text", "cut off", "another format than its name says"],
)
def test_damaged_images_are_bad_samples(data):
    with pytest.raises(BadSample, match="does not decode"):
        decode_image(data, "png")
    # Said in the same words each time: quarantine.jsonl lists a sample once.
    assert len({reason_for(lambda: decode_image(data, "png")) for _ in range(3)}) == 1
    assert " at 0x" not in reason_for(lambda: decode_image(data, "png"))


def reason_for(decode):
    try:
        decode()
    except BadSample as error:
        return str(error)
    return ""


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_an_extreme_aspect_ratio_is_refused(extension):
    """Scaled to fill a square of 512 pixels, one of 2 x 8000 would be 512 x 2,048,000."""
    buffer = io.BytesIO()
    Image.new("RGB", (2, 201)).save(buffer, IMAGE_FORMATS[extension])
    with pytest.raises(BadSample, match="2 x 201 pixels: one side is over 100 times the other"):
        decode_image(buffer.getvalue(), extension)


LINE = {"text": "A", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]}


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[" * 100_000,
        b"{}",
        {"caption": " "},
        {"caption": 3},
        {"caption": "a", "lines": None},
        {"caption": "a", "lines": [None]},
        {"caption": "a", "lines": [LINE | {"polygon": [[0, 0], [1, 0], [1, 1]]}]},
        {"caption": "a", "lines": [LINE | {"polygon": [[0, 0], [1, 0], [1, 1], [0, 10**400]]}]},
        {"caption": "a", "lines": [LINE | {"confidence": "high"}]},
        {"caption": "a", "lines": [LINE | {"words": []}]},
        {"caption": "a", "objects": [{"phrase": "b", "box": [0, 0, 1]}]},
        {"caption": "a", "objects": [{"phrase": "b", "box": [0, 0, 1, 10**400]}]},
        b'{"caption": "a", "objects": [{"phrase": "b", "box": [0, 0, 1, Infinity]}]}',
        # Half a surrogate pair, escaped or in bytes that are no UTF-8: tokenizers raise their own errors at it.
        b'{"caption": "half \\ud83d of it"}',
        b'{"caption": "half \xed\xa0\xbd of it"}',
        {"caption": "a", "lines": [LINE | {"text": "\udc00"}]},
        {"caption": "a", "objects": [{"phrase": "\udc00", "box": [0, 0, 1, 1]}]},
    ],
)
def test_invalid_records_are_bad_samples(record):
    data = record if isinstance(record, bytes) else json.dumps(record).encode()
    with pytest.raises(BadSample):
        decode_sample({"png": encoded_image("png"), "json": data}, "key")


def test_a_whole_surrogate_pair_is_a_character():
    data = json.dumps({"caption": "\U0001f600"}).encode()
    assert b"\\ud83d\\ude00" in data
    assert decode_sample({"png": encoded_image("png"), "json": data}, "key").caption == "\U0001f600"


def test_a_missing_member_is_named():
    good = encode_sample(Sample("key", IMAGE, "a sign", Layout(())))
    with pytest.raises(BadSample, match="no image; known: jpg"):
        decode_sample({"json": good["json"], "gif": b""}, "key")
    with pytest.raises(BadSample, match="no json"):
        decode_sample({"png": good["png"]}, "key")


def test_a_huge_record_is_refused():
    data = json.dumps({"caption": "a" * 4_100_000}).encode()
    with pytest.raises(BadSample, match="over the size limit"):
        decode_sample({"png": encoded_image("png"), "json": data}, "key")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"caption": "x" * 3_000_000}, "the caption has 3000000 characters, over the limit of 20000"),
        ({"caption": "x", "lines": [{"text": "A" * 1001, "box": [0, 0, 1, 1]}]}, "a line of text has 1001 characters"),
        ({"caption": "x", "lines": [{"text": "A", "box": [0, 0, 1, 1]}] * 2001}, "there are 2001 lines of text"),
        ({"caption": "x", "objects": [{"phrase": "x", "box": [0, 0, 1, 1]}] * 800}, "there are 800 objects, over"),
        (
            {"caption": "x", "lines": [{"text": "A", "polygon": [[0, 0]] * 60_000}]},
            "has 60000 points, over the limit",
        ),
        (
            {"caption": "x", "lines": [{"text": "A", "polygon": [[0, 0]] * 900}] * 90},
            "have 81000 points",
        ),
    ],
)
def test_more_text_than_an_image_can_show_is_refused(record, said):
    with pytest.raises(BadSample, match=said):
        decoding.decode_record(json.dumps(record).encode(), "key")


def jpegs():
    """Images of all kinds that a .jpg may be, sound and damaged."""
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 256, (37, 53, 3), dtype=np.uint8)).resize((123, 91))
    for name, mode, options in (
        ("plain", "RGB", {}),
        ("not subsampled", "RGB", {"subsampling": 0}),
        ("half subsampled", "RGB", {"subsampling": 1}),
        ("progressive", "RGB", {"progressive": True}),
        ("grey", "L", {}),
        ("four inks", "CMYK", {}),
        ("RGB inside", "RGB", {"keep_rgb": True}),
    ):
        buffer = io.BytesIO()
        rough.convert(mode).save(buffer, "JPEG", quality=85, **options)
        data = buffer.getvalue()
        yield name, data
        yield f"{name}, cut", data[: len(data) // 2]
        yield f"{name}, without its end mark", data[:-2]
        yield f"{name}, with a tail", data + b"tail"
        yield (
            f"{name}, damaged in the middle",
            data[: len(data) // 2] + b"\xff\xd0\x00\xff" + data[len(data) // 2 + 4 :],
        )
    yield "empty", b""
    buffer = io.BytesIO()
    rough.save(buffer, "PNG")
    yield "a png", buffer.getvalue()


@pytest.mark.parametrize(("name", "data"), jpegs())
def test_a_jpg_is_the_same_with_either_decoder(monkeypatch, name, data):
    def decoded():
        try:
            return decode_image(data, "jpg", np.full((91, 123, 3), 7, np.uint8))
        except BadSample as error:
            return str(error)

    fast = decoded()
    monkeypatch.setattr(decoding, "_decode_jpeg", lambda data, room: None)  # as for what libjpeg-turbo does not take
    slow = decoded()
    assert type(fast) is type(slow)
    assert np.array_equal(fast, slow)


@pytest.mark.parametrize("name", ["plain", "four inks"])  # libjpeg-turbo decodes the one, Pillow the other
def test_an_image_is_decoded_into_memory_of_its_shape(name):
    data = dict(jpegs())[name]
    room = np.zeros((91, 123, 3), np.uint8)
    assert np.shares_memory(decode_image(data, "jpg", room), room) and room.any()
    other = np.zeros((90, 123, 3), np.uint8)
    assert decode_image(data, "jpg", other).shape == (91, 123, 3) and not other.any()
