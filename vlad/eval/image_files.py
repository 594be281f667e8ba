"""Image files of any source as pixels, and watermarks painted over."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from vlad.eval.options import Box

MOST_PIXELS = 100_000_000  # an image with more is not decoded


def load_image(path: Path) -> np.ndarray:
    """The image's pixels (H W 3, uint8), transparent parts on white. Raises ValueError where it cannot be read."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                ground = Image.new("RGBA", image.size, "white")
                return np.asarray(Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB"))
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise ValueError("is no image") from error
    except Exception as error:  # Pillow's plugins share no class for what they meet in damaged files
        raise ValueError(str(error) or type(error).__name__) from error


def paint_over(image: np.ndarray, box: Box) -> np.ndarray:
    """The image (H W 3, uint8) with a box of it, grown by a pixel, in the median colour of what is around."""
    height, width = image.shape[:2]
    left, top = max(0, int(box[0] * width) - 1), max(0, int(box[1] * height) - 1)
    right, bottom = min(width, math.ceil(box[2] * width) + 1), min(height, math.ceil(box[3] * height) + 1)
    ring = np.zeros((height, width), dtype=bool)
    ring[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = True
    ring[top:bottom, left:right] = False
    result = image.copy()
    result[top:bottom, left:right] = np.median(image[ring if ring.any() else ...].reshape(-1, 3), axis=0)
    return result
