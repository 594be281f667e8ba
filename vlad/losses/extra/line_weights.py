"""Pixel weights by which every line of text counts the same in L_diff, small text as much as large.

    L = mean_p e_p + lambda sum_i mean_{p in R_i} e_p        p: pixels of the image, R_i: the region of line i

A line that covers two per cent of the image has two per cent of the plain mean; here every line adds lambda times the
mean of its own region. As pixel weights: w_p = 1 + lambda sum_{i: p in R_i} 1 / a_i with a_i the line's share of the
image, at most MAX_WEIGHT, so that a line of a few pixels does not outweigh the rest.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vlad.layout.polygons import bounding_box, box_polygon, quad_of
from vlad.types import Layout, TextLine

MAX_WEIGHT = 30.0
SUBSAMPLES = 4  # of a pixel or cell along one side, for its coverage by a region


def line_weights(layouts: tuple[Layout, ...], line_weight: float, height: int, width: int) -> Tensor:
    """w, see above, at `height` x `width` pixels or cells: B 1 h w. Invalid lines add nothing."""
    weights = np.ones((len(layouts), height, width), dtype=np.float32)
    for row, layout in enumerate(layouts):
        for line in layout.lines:
            if not line.valid:
                continue
            region = _region(line, height, width)
            share = float(region.mean())
            if share > 0:
                weights[row] += line_weight / share * region
    return torch.from_numpy(weights.clip(max=MAX_WEIGHT))[:, None]


def _region(line: TextLine, height: int, width: int) -> np.ndarray:
    """The share of each pixel or cell that a line's quad covers (h w, 0..1); the bounding box for curved text."""
    if len(line.polygon) > 4:
        quad = np.array(box_polygon(*bounding_box(line.polygon)))
    else:
        quad = np.array(quad_of(line.polygon))
    quad = quad * (width, height)
    left, top = np.floor(quad.min(axis=0)).astype(int).clip(0, (width, height))
    right, bottom = np.ceil(quad.max(axis=0)).astype(int).clip(0, (width, height))
    region = np.zeros((height, width), dtype=np.float32)
    columns, rows = right - left, bottom - top
    if columns <= 0 or rows <= 0:
        return region
    # Centres of the subsamples in the box; those inside of the quad are on the same side of all four edges.
    x = left + (np.arange(columns * SUBSAMPLES) + 0.5) / SUBSAMPLES
    y = top + (np.arange(rows * SUBSAMPLES) + 0.5)[:, None] / SUBSAMPLES
    inside = np.ones((rows * SUBSAMPLES, columns * SUBSAMPLES), dtype=bool)
    for (x0, y0), (x1, y1) in zip(quad, np.roll(quad, -1, axis=0), strict=True):
        inside &= (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) >= 0
    region[top:bottom, left:right] = inside.reshape(rows, SUBSAMPLES, columns, SUBSAMPLES).mean(axis=(1, 3))
    return region
