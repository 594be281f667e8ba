"""Images that a user hands in are read as those of shards are: upright, in sRGB, transparency on a background."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vlad.inference.input_images import open_image, read_image


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "white")
    image.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the left side is the top
    image.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    upright = read_image(tmp_path / "photo.jpg")
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5))[2] < 60  # red
    assert upright.getpixel((10, 35))[2] > 200


def test_transparent_text_stands_out(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    pixels[4:12, 4:12] = 255  # white on nothing
    Image.fromarray(pixels).save(tmp_path / "logo.png")
    opened = np.asarray(open_image(tmp_path / "logo.png", "logo.png"))
    assert opened[8, 8].tolist() == [255, 255, 255] and opened[0, 0].tolist() == [0, 0, 0]
