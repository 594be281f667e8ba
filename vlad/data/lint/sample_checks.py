"""Checks of one sample, and the kinds of findings that a lint run reports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlad.data.decoding import (
    IMAGE_FORMATS,
    MAX_IMAGE_PIXELS,
    BadSample,
    decode_image,
    decode_record,
    image_size,
)
from vlad.layout.fonts import missing_glyphs
from vlad.layout.polygons import polygon_area
from vlad.types import Polygon, Sample, TextLine

OUTSIDE_TOLERANCE = 1e-3  # of the image's side: rounding
MIN_AREA = 1e-6  # of the image
MAX_POLYGON_POINTS = 200  # crosses_itself takes quadratic time


# Kinds of findings in the order of the report.
KINDS = {
    "shard": "shards that are unreadable or damaged",
    "manifest": "shards that differ from their manifest",
    "name": "members with absolute or climbing paths, links out of the shard, devices (never read)",
    "member": "members of unsupported kinds, and hidden ones (never read)",
    "double": "samples with oversized or duplicate members",
    "incomplete": "samples without an image or without a record",
    "bomb": "images over the pixel limit (never decoded)",
    "image": "images that do not decode",
    "record": "records that cannot be parsed",
    "caption": "missing captions",
    "text": "lines without text",
    "outside": "polygons that reach outside the image",
    "crossing": "polygons that cross themselves",
    "flat": "polygons without area",
    "font": "lines with characters that no bundled font has (training ignores them)",
    "duplicate": "keys that occur more than once",
    "launch": "launches that the set is too small for",
}


@dataclass(frozen=True)
class Finding:
    """One problem. `key` is None where it concerns a whole shard, `shard` where it concerns the whole set."""

    kind: str
    shard: str | None
    key: str | None
    detail: str

    @property
    def place(self) -> str:
        """Shard and key, as far as there are any."""
        return ", ".join(name for name in (self.shard, self.key) if name is not None)


def crosses_itself(polygon: Polygon) -> bool:
    """Whether two sides of the polygon cross at a point inside both."""
    points = np.array(polygon, dtype=np.float64)
    following = np.roll(points, -1, axis=0)

    def turn(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return np.sign(
            (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])
        )

    first, second = np.triu_indices(len(points), k=1)
    a, b, c, d = points[first], following[first], points[second], following[second]
    return bool(((turn(a, b, c) * turn(a, b, d) < 0) & (turn(c, d, a) * turn(c, d, b) < 0)).any())


def line_faults(line: TextLine) -> Iterator[tuple[str, str]]:
    """The problems of a line of text, as kinds and details."""
    name = repr(line.text)
    if line.valid and not line.text.strip():
        yield "text", "a line marked as valid has no text"
    if line.valid and (missing := missing_glyphs(line.text)):
        yield "font", f"{name}: no bundled font has {missing}"
    xs, ys = zip(*line.polygon, strict=True)
    beyond = max(-min(xs), -min(ys), max(xs) - 1, max(ys) - 1)
    if beyond > OUTSIDE_TOLERANCE:
        yield "outside", f"the polygon of {name} reaches outside the image by {beyond:.3g} of its side"
    if len(line.polygon) > MAX_POLYGON_POINTS:
        yield (
            "crossing",
            f"the polygon of {name} has {len(line.polygon)} points, too many to check (at most {MAX_POLYGON_POINTS})",
        )
    elif crosses_itself(line.polygon):
        yield "crossing", f"the polygon of {name} crosses itself"
    elif polygon_area(line.polygon) <= MIN_AREA:
        yield "flat", f"the polygon of {name} has no area"


def check_members(members: dict[str, bytes], key: str) -> tuple[Sample | None, list[tuple[str, str]]]:
    """Decodes a sample: the sample (None where image or record fail), and its problems as kinds and details."""
    faults: list[tuple[str, str]] = []
    kind = next((kind for kind in IMAGE_FORMATS if kind in members), None)
    image = None
    if kind is None:
        faults.append(("incomplete", f"no image; supported formats: {', '.join(IMAGE_FORMATS)}"))
    else:
        try:
            width, height = image_size(members[kind], kind)
            if width * height > MAX_IMAGE_PIXELS:
                faults.append(("bomb", f"{width} x {height} pixels exceed the limit of {MAX_IMAGE_PIXELS}"))
            else:
                image = decode_image(members[kind], kind)
        except BadSample as error:
            bomb = isinstance(error.__cause__, Image.DecompressionBombError)
            faults.append(("bomb" if bomb else "image", str(error)))
    if "json" not in members:
        return None, [*faults, ("incomplete", "no json record")]
    try:
        sample = decode_record(members["json"], key)[1]
    except BadSample as error:
        lacks_caption = _lacks_caption(members["json"])
        fault = ("caption", "the caption is missing or empty") if lacks_caption else ("record", str(error))
        return None, [*faults, fault]
    for line in sample.layout.lines:
        faults += line_faults(line)
    if image is None:
        return None, faults
    return Sample(key, image, sample.caption, sample.layout, sample.objects, sample.source, sample.licence), faults


def _lacks_caption(data: bytes) -> bool:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return False
    caption = record.get("caption") if isinstance(record, dict) else ""
    return caption is None or (isinstance(record, dict) and isinstance(caption, str) and not caption.strip())
