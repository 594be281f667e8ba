"""Crops of text lines: cut out of an image, rectified and upright."""

from __future__ import annotations

import cv2
import numpy as np

from vlad.layout.polygons import quad_of
from vlad.types import Polygon

UPRIGHT_ASPECT = 1.2  # height over width above which a crop is taken for vertical text (AnyText's rule)
LONGEST_SIDE_PIXELS = 4096


def crop_line(image: np.ndarray, polygon: Polygon) -> np.ndarray | None:
    """The crop (H W 3, uint8) of a polygon, its perspective undone; None where it covers no pixel.

    The polygon is clockwise from the top left corner of the text, in image coordinates; pixels outside the image take
    the colour of the nearest one. Vertical text is rotated to run from left to right.
    """
    height, width = image.shape[:2]
    quad = np.array(quad_of(polygon), dtype=np.float32) * (width, height)
    top, right, bottom, left = np.linalg.norm(np.roll(quad, -1, axis=0) - quad, axis=1)
    columns, rows = round(max(top, bottom)), round(max(left, right))
    if min(columns, rows) < 1 or max(columns, rows) > LONGEST_SIDE_PIXELS:
        return None
    corners = np.array([(0, 0), (columns, 0), (columns, rows), (0, rows)], dtype=np.float32)
    # OpenCV's coordinates are pixel centres, ours are pixel corners: half a pixel apart.
    to_crop = cv2.getPerspectiveTransform(quad.astype(np.float32) - 0.5, corners - 0.5)
    crop = cv2.warpPerspective(image, to_crop, (columns, rows), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.rot90(crop).copy() if rows > UPRIGHT_ASPECT * columns else crop
