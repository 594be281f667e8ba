"""Images from users: templates, images to edit, masks; read safely and identified by their pixels."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from vlad.utils.errors import UserError
from vlad.utils.paths import existing_file

MOST_IMAGE_PIXELS = 64_000_000  # 8000 x 8000


def read_image(path: Path | str, most_pixels: int = MOST_IMAGE_PIXELS) -> Image.Image:
    """A user's image file as RGB. Raises UserError for one that cannot be read or has too many pixels."""
    return open_image(existing_file(path, "image", "give a PNG, JPEG or WebP"), str(path), most_pixels)


def open_image(source: Path | IO[bytes], label: str, most_pixels: int = MOST_IMAGE_PIXELS) -> Image.Image:
    """The same from a path or an open stream; `label` names it in messages."""
    from vlad.data.image_pixels import to_rgb  # sampling without an image of the user's loads no data room

    try:
        with Image.open(source, formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > most_pixels:
                raise UserError(
                    f"{label} has {image.width} x {image.height} pixels; more than {most_pixels:,} are not read:"
                    " make it smaller."
                )
            return to_rgb(image)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{label} has more than {most_pixels:,} pixels; make it smaller.") from error
    except Exception as error:  # Pillow's plugins share no class for what they meet in damaged files
        raise UserError(f"{label} is no image that can be read; give a PNG, JPEG or WebP.") from error


def pixels_fingerprint(pixels: np.ndarray) -> str:
    """16 hexadecimal digits of an array's shape and bytes."""
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype}".encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()[:16]
