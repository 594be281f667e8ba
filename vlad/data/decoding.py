"""Decoding and encoding of samples. Decoders are an allow-list (jpg, png, webp, json): nothing in a shard can run code.

A sample is `KEY.png` (or jpg, webp) beside `KEY.json`:

    {"caption": str,
     "lines": [{"text": str, "polygon": [[x, y], ...], "language"?, "font"?, "colour"?, "valid"?, "confidence"?}],
     "objects"?: [{"phrase": str, "box": [left, top, right, bottom]}], "source"?: str, "licence"?: str}

Coordinates are shares of the image's width and height, 0..1.
"""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from vlad.data.image_pixels import to_rgb, upright_size
from vlad.layout.layout_files import layout_from_json, line_to_json
from vlad.types import Layout, ObjectBox, Sample

IMAGE_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
MAX_IMAGE_PIXELS = 64_000_000
# Scaled until its shorter side fills a training shape, a longer strip would take all memory.
MAX_IMAGE_ASPECT = 100
MAX_JSON_BYTES = 4_000_000
# Far above what any image holds. Letters are rendered before they are fitted into a line: each takes memory.
MAX_CAPTION_CHARACTERS, MAX_LINES, MAX_LINE_CHARACTERS = 20_000, 2_000, 1_000
# Each phrase is encoded by itself at every step, and looked up in the caption.
MAX_OBJECTS = 200
# The members that a shard may hold, and how large one may be. Arrays (npy) are in `latent_cache`.
MEMBER_KINDS = frozenset((*IMAGE_FORMATS, "json", "txt"))
MAX_MEMBER_BYTES = 256_000_000
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

# The errors of Pillow for an image that it cannot read.


class BadSample(ValueError):  # noqa: N818 - the run goes on without the sample: no error of the program
    """Why one sample cannot be used. The run goes on without it."""


def image_size(data: bytes, extension: str) -> tuple[int, int]:
    """Width and height of the upright image, from the header; nothing is decoded. Raises BadSample."""
    try:
        with Image.open(io.BytesIO(data), formats=[IMAGE_FORMATS[extension]]) as image:
            return upright_size(image)
    except Exception as error:  # Pillow's plugins share no class for what they meet in damaged files
        raise _undecodable(error, extension) from error


def decode_image(data: bytes, extension: str, into: np.ndarray | None = None) -> np.ndarray:
    """RGB pixels H W 3 (uint8), written into `into` where it has their shape. Raises BadSample.

    The size is checked from the header, before anything is decoded.
    """
    # EXIF and colour profiles stand in a jpg's first segments: one with neither is decoded without Pillow.
    plain = IMAGE_FORMATS[extension] == "JPEG" and not any(mark in data[:65536] for mark in (b"Exif", b"ICC_PROFILE"))
    pixels = _decode_jpeg(data, into) if plain else None
    if pixels is not None:
        return pixels
    try:
        with Image.open(io.BytesIO(data), formats=[IMAGE_FORMATS[extension]]) as image:
            _refuse_size(image.width, image.height)
            pixels = np.asarray(to_rgb(image))
            if into is None or into.shape != pixels.shape:
                return pixels
            into[:] = pixels
            return into
    except (BadSample, MemoryError):
        raise
    except Exception as error:
        raise _undecodable(error, extension) from error


def _undecodable(error: Exception, extension: str) -> BadSample:
    # Pillow's text holds the address of the file object: the quarantine would list the sample again each time.
    reason = f"it is no {extension}" if isinstance(error, UnidentifiedImageError) else error
    return BadSample(f"image does not decode: {reason}")


def _decode_jpeg(data: bytes, into: np.ndarray | None) -> np.ndarray | None:
    """The pixels of a jpg by libjpeg-turbo: the same as Pillow's, which calls it row by row, but faster.

    None for a damaged jpg or one of other colours, which Pillow has to judge.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        _refuse_size(width, height)
        if colours not in ("YCbCr", "Gray"):
            return None
        if into is None or into.shape != (height, width, 3):
            into = np.empty((height, width, 3), np.uint8)
        return simplejpeg.decode_jpeg(data, "RGB", buffer=into)
    except BadSample:
        raise
    except ValueError:
        return None


def _refuse_size(width: int, height: int) -> None:
    if width * height > MAX_IMAGE_PIXELS:
        raise BadSample(f"{width} x {height} pixels are over the limit")
    if max(width, height) > MAX_IMAGE_ASPECT * min(width, height):
        raise BadSample(f"{width} x {height} pixels: one side is over {MAX_IMAGE_ASPECT} times the other")


def decode_record(data: bytes, key: str) -> tuple[dict[str, Any], Sample]:
    """The JSON record of a sample, and the sample without its image (0 x 0 pixels). Raises BadSample."""
    if len(data) > MAX_JSON_BYTES:
        raise BadSample("json is over the size limit")
    try:
        record = json.loads(data)
        caption = record["caption"]
        if not isinstance(caption, str) or not caption.strip():
            raise BadSample("caption is missing or empty")
        layout = layout_from_json({"lines": record.get("lines", [])})
        found = record.get("objects") or ()
        if len(found) > MAX_OBJECTS:
            raise BadSample(f"there are {len(found)} objects, over the limit of {MAX_OBJECTS}")
        objects = tuple(_object_from_json(entry) for entry in found)
        refuse_too_much_text(caption, layout)
        _refuse_lone_surrogates(caption, layout, objects)
        source, licence = (_optional_text(record, name) for name in ("source", "licence"))
    except BadSample:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise BadSample(f"json: {error!r}"[:300]) from error
    return record, Sample(key, np.empty((0, 0, 3), np.uint8), caption, layout, objects, source, licence)


def refuse_too_much_text(caption: str, layout: Layout) -> None:
    """Raises BadSample for more text than any image can show."""
    longest = max((len(line.text) for line in layout.lines), default=0)
    for count, limit, what in (
        (len(caption), MAX_CAPTION_CHARACTERS, "the caption has {} characters"),
        (len(layout.lines), MAX_LINES, "there are {} lines of text"),
        (longest, MAX_LINE_CHARACTERS, "a line of text has {} characters"),
    ):
        if count > limit:
            raise BadSample(f"{what.format(count)}, over the limit of {limit}")


def _refuse_lone_surrogates(caption: str, layout: Layout, objects: tuple[ObjectBox, ...]) -> None:
    """JSON can hold half of a surrogate pair, which tokenizers refuse."""
    for what, texts in (
        ("the caption", [caption]),
        ("a line of text", [line.text for line in layout.lines]),
        ("an object's phrase", [entry.phrase for entry in objects]),
    ):
        if any(not text.isascii() and _LONE_SURROGATE.search(text) for text in texts):
            raise BadSample(f"{what} holds half a character")


def decode_sample(members: dict[str, bytes], key: str, into: np.ndarray | None = None) -> Sample:
    """A sample from its members by extension, its image in `into` if it fits. Raises BadSample."""
    extension = next((extension for extension in IMAGE_FORMATS if extension in members), None)
    if extension is None:
        raise BadSample(f"no image; known: {', '.join(IMAGE_FORMATS)}")
    if "json" not in members:
        raise BadSample("no json")
    _, sample = decode_record(members["json"], key)
    return replace(sample, image=decode_image(members[extension], extension, into))


def encode_record(sample: Sample) -> dict[str, Any]:
    """The JSON record of a sample, as plain values."""
    record: dict[str, Any] = {
        "caption": sample.caption,
        "lines": [line_to_json(line) for line in sample.layout.lines],
    }
    if sample.objects:
        record["objects"] = [{"phrase": entry.phrase, "box": list(entry.box)} for entry in sample.objects]
    if sample.source is not None:
        record["source"] = sample.source
    if sample.licence is not None:
        record["licence"] = sample.licence
    return record


def encode_sample(sample: Sample, extension: str = "png") -> dict[str, bytes]:
    """The members of a sample by extension: the inverse of `decode_sample`, up to the loss of a jpg."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 95} if extension == "jpg" else {}
    Image.fromarray(sample.image).save(buffer, IMAGE_FORMATS[extension], **options)
    # A lone surrogate, as broken JSON has them, becomes a question mark: UTF-8 has none.
    record = json.dumps(encode_record(sample), ensure_ascii=False).encode("utf-8", "replace")
    return {extension: buffer.getvalue(), "json": record}


def _optional_text(record: dict[str, Any], name: str) -> str | None:
    value = record.get(name)
    if value is not None and not isinstance(value, str):
        raise BadSample(f"{name} is not a string")
    return value


def _object_from_json(entry: dict[str, Any]) -> ObjectBox:
    left, top, right, bottom = (float(value) for value in entry["box"])
    if not all(math.isfinite(value) for value in (left, top, right, bottom)):
        raise BadSample("an object's box is not finite")
    return ObjectBox(str(entry["phrase"]), (left, top, right, bottom))
