"""Grids of images for people."""

from PIL import Image

from vlad.reports.image_grids import GridRow, sample_grid


def test_a_grid_has_no_empty_block_beside_a_single_image() -> None:
    row = GridRow("a sign (0)", (Image.new("RGB", (64, 64), "red"),))
    one, two = (sample_grid([row] * count, ("image",), cell_pixels=64) for count in (1, 2))
    assert two.width == 2 * one.width and two.height == one.height
    # Six pixels from the left edge stands the image.
    assert one.getpixel((6, 20)) == two.getpixel((one.width + 6, 20)) == (255, 0, 0)
