"""Image edits: only an image with a fitting mask is one, and its lines stand inside the mask."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlad.layout.image_edits import Edit, common_size, fit_lines_into_mask, layout_of_edit, pair_edits
from vlad.layout.masks import lines_mask, mask_from_image
from vlad.layout.polygons import bounding_box, box_polygon
from vlad.types import Layout, TextLine
from vlad.utils.errors import UserError

TOP = TextLine("HOUSE", box_polygon(0.25, 0.25, 0.75, 0.5))
BOTTOM = TextLine("BUS", box_polygon(0.25, 0.75, 0.5, 0.875))
LAYOUT = Layout((TOP, BOTTOM))


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@given(
    st.lists(st.text("AWI", min_size=1, max_size=12), min_size=1, max_size=4),
    st.integers(0, 30),
    st.integers(0, 30),
    st.integers(8, 34),
    st.integers(8, 34),
)
def test_lines_fit_into_their_mask_in_order(strings: list[str], left: int, top: int, width: int, height: int) -> None:
    mask = np.zeros((64, 64), dtype=bool)
    mask[top : top + height, left : left + width] = True
    lines = fit_lines_into_mask(strings, mask).lines
    assert [line.text for line in lines] == strings
    boxes = [bounding_box(line.polygon) for line in lines]
    for box in boxes:
        assert left / 64 <= box[0] < box[2] <= (left + width) / 64 + 1e-9
        assert top / 64 <= box[1] < box[3] <= (top + height) / 64 + 1e-9
    assert all(above[3] <= below[1] + 1e-9 for above, below in itertools.pairwise(boxes))
    assert fit_lines_into_mask([], mask) == Layout(())


def test_an_image_and_a_mask_that_do_not_fit_are_refused() -> None:
    image = np.zeros((32, 64, 3), dtype=np.uint8)
    with pytest.raises(UserError, match="mask has 64 x 64 pixels and the image 64 x 32"):
        Edit(image, np.ones((64, 64), dtype=bool))
    with pytest.raises(UserError, match="mask is empty"):
        Edit(image, np.zeros((32, 64), dtype=bool))
    with pytest.raises(UserError, match="one of the two is missing"):
        pair_edits(image, None, 1)
    with pytest.raises(UserError, match="1 images and 2 masks for 2 prompts"):
        pair_edits([image], np.ones((32, 64), dtype=bool), 2)
    assert pair_edits(None, None, 2) == [None, None]


def test_pillow_images_and_arrays_make_the_same_edit() -> None:
    shown = Image.new("RGBA", (64, 32), (9, 8, 7, 255))
    mask = Image.new("L", (64, 32))
    mask.paste(255, (8, 4, 16, 12))
    first, second = pair_edits(shown, mask, 2)
    assert first is not None and second is not None
    assert first.image.shape == (32, 64, 3) and (first.image == (9, 8, 7)).all()
    assert extent(first.mask) == (8, 4, 16, 12)
    assert (first.mask == mask_from_image(mask)).all()
    assert common_size([first, None, second]) == (32, 64)
    with pytest.raises(UserError, match="2 sizes"):
        common_size([first, Edit(np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), bool))])


def test_a_line_outside_the_mask_is_refused() -> None:
    edit = Edit(np.zeros((64, 64, 3), np.uint8), lines_mask([TOP], 64, 64))
    assert layout_of_edit(edit, Layout((TOP,)), ()) == Layout((TOP,))
    assert [line.text for line in layout_of_edit(edit, None, ("NEW",)).lines] == ["NEW"]
    with pytest.raises(UserError, match="'BUS' stands outside the mask"):
        layout_of_edit(edit, LAYOUT, ())
