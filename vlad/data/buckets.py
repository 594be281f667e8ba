"""Aspect ratio buckets: the shapes of training images, and how an image is fitted to its bucket.

    image size -> nearest bucket -> scaled to cover it -> cropped so that as much text as possible stays whole

A batch holds images of one bucket. Sizes are (width, height) in pixels. After NovelAI's aspect ratio bucketing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vlad.layout.polygons import bounding_box, polygon_area
from vlad.types import Layout, ObjectBox, Polygon, Sample
from vlad.utils.errors import UserError


@dataclass(frozen=True)
class Bucket:
    """A shape of training images, in pixels; `side` is the side of the square of the same resolution."""

    width: int
    height: int
    side: int


def build_buckets(sides: tuple[int, ...], max_aspect: float, step_pixels: int) -> tuple[Bucket, ...]:
    """All shapes, in multiples of `step_pixels`, of about the same area as a square of one of `sides`.

    For each longer side, the shorter one that comes closest to the area from below, up to an aspect ratio of
    `max_aspect`; with `max_aspect` 1 the squares alone. Raises UserError for a side that is no multiple of the step.
    """
    found: dict[Bucket, None] = {}
    for side in sides:
        if side < step_pixels or side % step_pixels:
            nearest = max(1, round(side / step_pixels)) * step_pixels
            raise UserError(
                f"data: a resolution of {side} pixels is no multiple of data.bucket_step_pixels ({step_pixels});"
                f" try {nearest}."
            )
        found[Bucket(side, side, side)] = None
        for longer in range(side + step_pixels, int(side * max_aspect) + 1, step_pixels):
            shorter = side * side // longer // step_pixels * step_pixels
            if shorter and longer <= max_aspect * shorter:
                found[Bucket(longer, shorter, side)] = None
                found[Bucket(shorter, longer, side)] = None
    return tuple(sorted(found, key=lambda bucket: (bucket.side, bucket.width)))


def nearest_bucket(buckets: tuple[Bucket, ...], width: int, height: int) -> int:
    """The number of the bucket of an image."""
    return int(nearest_buckets(buckets, np.array([[width, height]]))[0])


def nearest_buckets(buckets: tuple[Bucket, ...], sizes: np.ndarray) -> np.ndarray:
    """The same for many images: sizes N 2 (width, height) -> numbers N.

    Each resolution has one bucket of the nearest aspect ratio. Of these an image gets the largest that it covers
    without being enlarged, or the smallest if it covers none.
    """
    shapes = np.array([(bucket.width, bucket.height) for bucket in buckets], dtype=np.float64)
    sides = np.array([bucket.side for bucket in buckets])
    sizes = np.asarray(sizes, dtype=np.float64).reshape(-1, 2)
    distance = np.abs(np.log(sizes[:, :1] / sizes[:, 1:]) - np.log(shapes[:, 0] / shapes[:, 1]))  # N buckets
    chosen = np.empty(len(sizes), dtype=np.int64)
    for rank, side in enumerate(np.unique(sides)):  # from the lowest resolution up
        members = np.flatnonzero(sides == side)
        candidate = members[distance[:, members].argmin(axis=1)]
        covered = (sizes >= shapes[candidate]).all(axis=1) | (rank == 0)
        chosen[covered] = candidate[covered]
    return chosen


def fit_sample(sample: Sample, bucket: Bucket, stretch: bool) -> Sample:
    """The sample at the shape of its bucket: stretched to the square, or cropped."""
    return stretch_image(sample, bucket.side) if stretch else crop_to_bucket(sample, bucket)


def stretch_image(sample: Sample, side: int) -> Sample:
    """The sample with its image resized to side x side (as AnyWord does); polygons are relative and stay."""
    if sample.image.shape[:2] == (side, side):
        return sample
    image = Image.fromarray(sample.image).resize((side, side), Image.Resampling.LANCZOS, reducing_gap=2)
    return replace(sample, image=np.asarray(image))


def crop_to_bucket(sample: Sample, bucket: Bucket) -> Sample:
    """The sample scaled to cover the bucket and cropped to it, its polygons and boxes too.

    Of the crops that keep most text whole, the one nearest to the middle. A line that is cut off becomes invalid, one
    that is gone is left out.
    """
    height, width = sample.image.shape[:2]
    scale = max(bucket.width / width, bucket.height / height)
    # Never under the bucket: rounding must not leave a row empty.
    scaled_width = max(bucket.width, round(width * scale))
    scaled_height = max(bucket.height, round(height * scale))
    left = _crop_start(sample.layout, 0, scaled_width, bucket.width)
    top = _crop_start(sample.layout, 1, scaled_height, bucket.height)
    image = sample.image
    if (scaled_width, scaled_height) != (width, height):
        scaled = Image.fromarray(image).resize((scaled_width, scaled_height), Image.Resampling.LANCZOS, reducing_gap=2)
        image = np.asarray(scaled)
    image = image[top : top + bucket.height, left : left + bucket.width]
    if (scaled_width, scaled_height) == (bucket.width, bucket.height):
        return replace(sample, image=image)

    def cropped(x: float, y: float) -> tuple[float, float]:
        return (x * scaled_width - left) / bucket.width, (y * scaled_height - top) / bucket.height

    lines = []
    for line in sample.layout.lines:
        polygon = tuple(cropped(x, y) for x, y in line.polygon)
        if all(_inside(point) for point in polygon):
            lines.append(replace(line, polygon=polygon))
        elif _touches(polygon):
            was_whole = all(_inside(point) for point in line.polygon)
            lines.append(replace(line, polygon=polygon, valid=line.valid and not was_whole))
    objects = []
    for entry in sample.objects:
        box = np.clip((*cropped(*entry.box[:2]), *cropped(*entry.box[2:])), 0.0, 1.0)
        if box[0] < box[2] and box[1] < box[3]:
            objects.append(ObjectBox(entry.phrase, tuple(float(value) for value in box)))  # type: ignore[arg-type]
    return replace(sample, image=image, layout=replace(sample.layout, lines=tuple(lines)), objects=tuple(objects))


EDGE = 1e-6  # rounding errors


def _inside(point: tuple[float, float]) -> bool:
    return all(-EDGE <= value <= 1 + EDGE for value in point)


def _touches(polygon: Polygon) -> bool:
    left, top, right, bottom = bounding_box(polygon)
    return left < 1 and right > 0 and top < 1 and bottom > 0


def _crop_start(layout: Layout, axis: int, scaled: int, kept: int) -> int:
    """The first of the `kept` pixels of `scaled` along an axis (0 x, 1 y)."""
    free = scaled - kept
    if free == 0:
        return 0
    spans = []  # of the lines that can be kept whole: first and last pixel, and the area as their weight
    for line in layout.lines:
        values = [point[axis] * scaled for point in line.polygon]
        if line.valid and max(values) - min(values) <= kept:
            spans.append((min(values), max(values), polygon_area(line.polygon)))
    middle = free // 2
    # The best start is the middle, or one at which a line just comes in at one end.
    edges = (number for low, high, _ in spans for number in (math.floor(low), math.ceil(high) - kept))
    starts = {middle, *(min(free, max(0, number)) for number in edges)}

    def whole_text(start: int) -> float:
        return sum(area for low, high, area in spans if start <= low + EDGE and high - EDGE <= start + kept)

    return min(starts, key=lambda start: (-whole_text(start), abs(start - middle), start))
