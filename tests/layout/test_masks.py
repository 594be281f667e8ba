"""Masks: the pixels they cover, the lines they touch, and those made for training."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vlad.layout.masks import lines_mask, lines_touching, polygons_mask, random_mask
from vlad.layout.polygons import box_polygon
from vlad.types import Layout, TextLine

TOP = TextLine("HOUSE", box_polygon(0.25, 0.25, 0.75, 0.5))
BOTTOM = TextLine("BUS", box_polygon(0.25, 0.75, 0.5, 0.875))
LAYOUT = Layout((TOP, BOTTOM))


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def test_a_mask_covers_its_polygon_and_grows_by_its_height() -> None:
    left, top, right, bottom = extent(polygons_mask([TOP.polygon], 64, 32))
    assert abs(left - 16) <= 1 and abs(right - 48) <= 1 and abs(top - 8) <= 1 and abs(bottom - 16) <= 1
    grown = lines_mask([TOP], 64, 32, margin=0.25)
    assert extent(grown) == (left - 2, top - 2, right + 2, bottom + 2)
    # Two lines leave what is between them.
    both = lines_mask(LAYOUT.lines, 64, 64, margin=0.1)
    assert not both[40:44].any()
    assert both[20:30, 20:40].all()


def test_lines_are_touched_where_the_mask_covers_a_pixel_of_them() -> None:
    assert lines_touching(lines_mask([TOP], 64, 64), LAYOUT) == (TOP,)
    assert lines_touching(np.ones((64, 64), dtype=bool), LAYOUT) == (TOP, BOTTOM)
    corner = np.zeros((64, 64), dtype=bool)
    corner[:4, :4] = True
    assert lines_touching(corner, LAYOUT) == ()


@given(st.integers(0, 2**32 - 1), st.sampled_from([(64, 64), (96, 32)]))
def test_training_masks_are_never_empty_and_take_lines_or_boxes(seed: int, size: tuple[int, int]) -> None:
    mask = random_mask(np.random.default_rng(seed), LAYOUT, *size)
    assert mask.shape == size[::-1]
    assert mask.any()
    assert random_mask(np.random.default_rng(seed), Layout(()), *size).any()


def test_training_masks_are_of_all_kinds() -> None:
    rng = np.random.default_rng(0)
    touched = [lines_touching(random_mask(rng, LAYOUT, 64, 64), LAYOUT) for _ in range(200)]
    for kind in ((), (TOP,), (BOTTOM,), (TOP, BOTTOM)):
        assert touched.count(kind) >= 10, kind
