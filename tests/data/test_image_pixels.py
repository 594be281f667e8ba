"""RGB pixels of image files: upright, sRGB, 8 bits, without alpha, whatever their metadata; one way for all readers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from vlad.data.decoding import BadSample, decode_image, image_size
from vlad.data.image_pixels import SOURCE_FORMATS, to_rgb
from vlad.data.importers.annotate import UnusableEntry, load_image
from vlad.inference.input_images import open_image
from vlad.utils.errors import UserError

RAMP = np.arange(64 * 48, dtype=np.uint32).reshape(48, 64)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, SOURCE_FORMATS[kind], **options)
    return stream.getvalue()


def all_readers(data: bytes, kind: str) -> list[np.ndarray]:
    """The pixels as training and validation read them, and as importers do."""
    return [decode_image(data, kind), load_image(data, 1024).pixels]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_images_are_upright_in_every_reader(kind: str, orientation: int) -> None:
    image = Image.new("RGB", (64, 48), "black")
    image.paste("white", (0, 0, 32, 24))  # the stored upper left
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, kind, exif=exif)
    corner = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    for pixels in all_readers(data, kind):
        height, width = pixels.shape[:2]
        assert (width, height) == ((64, 48) if orientation < 5 else (48, 64)) == image_size(data, kind)
        quarters = pixels.reshape(2, height // 2, 2, width // 2, 3).mean(axis=(1, 3, 4))
        assert np.unravel_index(quarters.argmax(), (2, 2)) == corner


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    values = (RAMP * 20).astype(np.uint16)
    data = encoded(Image.fromarray(values), kind)
    readers = all_readers(data, kind) if kind == "png" else [load_image(data, 1024).pixels]
    for pixels in readers:
        np.testing.assert_array_equal(pixels[..., 0], values >> 8)


@pytest.mark.parametrize(("ink", "background"), [((20, 20, 20), 255), ((240, 240, 240), 0)])
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_text_stands_out_from_what_was_transparent(kind: str, ink: tuple[int, int, int], background: int) -> None:
    image = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    image.paste((*ink, 255), (8, 8, 40, 24))
    for pixels in all_readers(encoded(image, kind, **({"lossless": True} if kind == "webp" else {})), kind):
        assert (pixels[0, 0] == background).all()
        assert np.abs(pixels[16, 20].astype(int) - ink).max() <= 2


def test_colour_profiles_become_srgb_and_damaged_ones_cost_nothing() -> None:
    image = Image.new("RGB", (64, 48), (200, 100, 50))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    for profile in (b"no profile", lab):
        for kind in ("jpg", "png"):
            for pixels in all_readers(encoded(image, kind, icc_profile=profile), kind):
                assert pixels.shape == (48, 64, 3)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for pixels in all_readers(encoded(image, "png", icc_profile=srgb), "png"):
        assert np.abs(pixels[0, 0].astype(int) - (200, 100, 50)).max() <= 1


@pytest.mark.parametrize("exif", [b"Exif\x00\x00", b"Exif\x00\x00garbage" * 9, b"Exif\x00\x00MM\x00*\x00\x00\xff\xff"])
def test_damaged_exif_costs_no_image(exif: bytes) -> None:
    data = encoded(Image.new("RGB", (64, 48), "red"), "jpg", exif=exif)
    for pixels in all_readers(data, "jpg"):
        assert pixels.shape == (48, 64, 3)


@pytest.mark.parametrize("kind", SOURCE_FORMATS)
def test_every_format_is_imported(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(encoded(Image.new("RGB", (64, 48), (200, 100, 50)), kind))
    assert np.abs(load_image((path,), 1024).pixels[24, 32].astype(int) - (200, 100, 50)).max() <= 6


def test_a_plain_image_is_handed_on_as_it_is() -> None:
    image = Image.new("RGB", (64, 48), "red")
    assert to_rgb(image) is image


@pytest.mark.parametrize(
    "error", [IndexError, KeyError, TypeError, ZeroDivisionError, RecursionError, NotImplementedError]
)
def test_whatever_pillow_raises_costs_one_image(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plugins share no class for what they meet in damaged files."""

    def fail(*_: object, **__: object) -> None:
        raise error("damaged")

    data = encoded(Image.new("RGB", (64, 48)), "png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    for read, refusal in (
        (lambda: decode_image(data, "png"), BadSample),
        (lambda: load_image(data, 1024), UnusableEntry),
        (lambda: open_image(io.BytesIO(data), "a.png"), UserError),
    ):
        with pytest.raises(refusal):
            read()
