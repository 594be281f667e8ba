"""RGB pixels of image files, for making shards, validating them and training: upright, sRGB, 8 bits, without alpha.

Metadata that no pixel depends on never costs an image: a damaged EXIF block or colour profile counts as none.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms, ImageOps

try:
    from pillow_heif import register_heif_opener  # the extra `heic`
except ImportError:
    READS_HEIC = False
else:
    register_heif_opener()
    READS_HEIC = True

HEIC = ("heic", "heif")  # what telephones save
# Extensions of the images that importers read, and Pillow's name of each format. Shards hold the first four.
SOURCE_FORMATS = {
    **{"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"},
    **{"jfif": "JPEG", "jpe": "JPEG", "bmp": "BMP", "gif": "GIF", "tif": "TIFF", "tiff": "TIFF", "avif": "AVIF"},
    **(dict.fromkeys(HEIC, "HEIF") if READS_HEIC else {}),
}
ORIENTATION_TAG = 0x0112
LIGHT = 160  # luminance of opaque pixels above which they stand out from black rather than from white
_METADATA_ERRORS = (OSError, SyntaxError, ValueError, TypeError, KeyError, ImageCms.PyCMSError)


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1, upright as stored, without one."""
    try:
        found = image.getexif().get(ORIENTATION_TAG, 1)
    except _METADATA_ERRORS:
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the upright image, from its header."""
    width, height = image.size
    return (height, width) if orientation_of(image) >= 5 else (width, height)


def to_rgb(image: Image.Image) -> Image.Image:
    """The image upright, in sRGB, 8 bits a channel, transparent parts on a background that the rest stands out from.

    Raises what Pillow raises for pixels that do not decode.
    """
    image.load()
    if orientation_of(image) > 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow would clip 16 bits to 8
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8))
    image = _in_srgb(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, _background(rgba)), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")  # `convert` copies even an RGB image


def _background(rgba: Image.Image) -> str:
    """White behind dark pixels, black behind light ones: transparent images are often light or dark text alone."""
    alpha = np.asarray(rgba.getchannel("A"), dtype=np.float64)
    luminance = np.asarray(rgba.convert("RGB").convert("L"), dtype=np.float64)
    total = alpha.sum()
    return "black" if total and (alpha * luminance).sum() / total > LIGHT else "white"


def _in_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return image
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except _METADATA_ERRORS:
        return image
    return image if converted is None else converted
