"""Aspect ratio buckets: shapes of one area, and polygons that move exactly with their images."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlad.data.buckets import Bucket, build_buckets, crop_to_bucket, nearest_bucket
from vlad.layout.polygons import box_polygon
from vlad.types import Layout, ObjectBox, Sample, TextLine
from vlad.utils.errors import UserError


def sample_of(width, height, *boxes, **fields):
    """An image whose red is its x and whose green is its y, both as shares of 250."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.round(250 * x)[None], np.round(250 * y)[:, None]
    lines = tuple(TextLine(f"line {number}", box_polygon(*box), **fields) for number, box in enumerate(boxes))
    return Sample("key", image, "a caption", Layout(lines))


def test_buckets_have_the_area_of_their_square():
    buckets = build_buckets((512,), 2.0, 64)
    assert {(b.width, b.height) for b in buckets} == {(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)}
    for bucket in buckets:
        assert bucket.width % 64 == bucket.height % 64 == 0
        assert 0.75 * 512**2 <= bucket.width * bucket.height <= 512**2
        assert max(bucket.width, bucket.height) <= 2 * min(bucket.width, bucket.height)
    assert {(b.height, b.width) for b in buckets} == {(b.width, b.height) for b in buckets}


def test_an_aspect_of_one_gives_squares_alone():
    assert build_buckets((256, 512), 1.0, 64) == (Bucket(256, 256, 256), Bucket(512, 512, 512))


def test_a_side_that_does_not_fit_the_step_is_refused():
    with pytest.raises(UserError, match=r"100 pixels is no multiple.*try 128"):
        build_buckets((100,), 2.0, 64)


def test_an_image_goes_to_the_nearest_aspect_and_the_largest_resolution_it_fills():
    buckets = build_buckets((256, 512), 2.0, 64)

    def of(width, height):
        return buckets[nearest_bucket(buckets, width, height)]

    assert of(3000, 3000) == Bucket(512, 512, 512)
    assert of(300, 310) == Bucket(256, 256, 256)
    assert of(20, 20) == Bucket(256, 256, 256)
    assert of(4000, 100).width > of(4000, 100).height
    assert of(600, 1000).side == 512
    assert of(600, 1000).height > of(600, 1000).width
    assert of(511, 511).side == 256


share = st.floats(0.02, 0.98)
sides = st.integers(20, 150)


@given(sides, sides, st.lists(st.tuples(share, share, share, share), max_size=4), st.integers(0, 8))
def test_polygons_move_with_their_images(width, height, corners, which):
    boxes = [(min(a, c), min(b, d), max(a, c) + 0.01, max(b, d) + 0.01) for a, b, c, d in corners]
    sample = sample_of(width, height, *boxes)
    buckets = build_buckets((48,), 3.0, 8)
    bucket = buckets[which % len(buckets)]
    fitted = crop_to_bucket(sample, bucket)
    assert fitted.image.shape == (bucket.height, bucket.width, 3)
    before = {line.text: line for line in sample.layout.lines}
    for line in fitted.layout.lines:
        for (x, y), (old_x, old_y) in zip(line.polygon, before[line.text].polygon, strict=True):
            column, row = int(np.floor(x * bucket.width)), int(np.floor(y * bucket.height))
            if not (1 <= column < bucket.width - 1 and 1 <= row < bucket.height - 1):
                continue  # outside, or where scaling has nothing to lean on
            red, green, _ = fitted.image[row, column].astype(float)
            # Within a pixel of either image, and the rounding of the colours.
            assert abs(red / 250 - old_x) < 1.5 / bucket.width * max(1, bucket.width / width) + 1.5 / width + 0.01
            assert abs(green / 250 - old_y) < 1.5 / bucket.height * max(1, bucket.height / height) + 1.5 / height + 0.01


@pytest.mark.parametrize("start", [0.0, 0.3, 0.7])
def test_the_crop_keeps_the_text_where_it_can(start):
    sample = sample_of(300, 100, (start, 0.2, start + 0.29, 0.8))
    (line,) = crop_to_bucket(sample, Bucket(100, 100, 100)).layout.lines
    assert line.valid
    assert min(x for x, _ in line.polygon) >= -1e-6
    assert max(x for x, _ in line.polygon) <= 1 + 1e-6


def test_without_text_the_crop_is_centred():
    image = crop_to_bucket(sample_of(300, 100), Bucket(100, 100, 100)).image
    assert image[50, 50, 0] == pytest.approx(125, abs=2)


def test_a_line_that_is_cut_is_invalid_and_one_that_is_gone_is_left_out():
    sample = sample_of(400, 100, (0.30, 0.3, 0.5, 0.7), (0.45, 0.1, 0.75, 0.2), (0.9, 0.4, 0.99, 0.6))
    lines = crop_to_bucket(sample, Bucket(100, 100, 100)).layout.lines
    assert [(line.text, line.valid) for line in lines] == [("line 0", True), ("line 1", False)]


def test_a_line_that_was_already_past_the_edge_stays_as_it_was():
    sample = sample_of(100, 100, (-0.1, 0.3, 0.5, 0.7))
    (line,) = crop_to_bucket(sample, Bucket(50, 50, 50)).layout.lines
    assert line.valid


def test_boxes_of_objects_are_cut_at_the_edge():
    sample = dataclasses.replace(
        sample_of(200, 100),
        objects=(ObjectBox("a dog", (0.0, 0.0, 0.5, 1.0)), ObjectBox("a cat", (0.9, 0.0, 1.0, 1.0))),
    )
    objects = crop_to_bucket(sample, Bucket(100, 100, 100)).objects
    assert [entry.phrase for entry in objects] == ["a dog"]
    assert objects[0].box == pytest.approx((0.0, 0.0, 0.5, 1.0))
