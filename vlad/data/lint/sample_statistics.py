"""Statistics of samples: histograms of text length and height, training shapes, scripts without a font."""

from __future__ import annotations

import itertools
import unicodedata
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from vlad.data.buckets import Bucket, nearest_bucket
from vlad.layout.fonts import missing_glyphs
from vlad.layout.polygons import quad_of
from vlad.types import Sample, TextLine

LENGTH_EDGES = (1, 2, 3, 5, 9, 17, 33, 65)
HEIGHT_EDGES_PIXELS = (0, 4, 8, 16, 32, 64, 128, 256)
HEIGHT_EDGES_PERCENT = (0, 1, 2, 4, 8, 16, 32, 64)


@dataclass
class Counts:
    """Sums over samples."""

    samples: int = 0
    sound: int = 0
    bytes: int = 0
    lines: int = 0
    valid_lines: int = 0
    without_text: int = 0  # samples without a valid line
    lengths: Counter[int] = field(default_factory=Counter)  # valid lines by bin of LENGTH_EDGES
    heights_pixels: Counter[int] = field(default_factory=Counter)
    heights_percent: Counter[int] = field(default_factory=Counter)  # share of the image's height
    buckets: Counter[int] = field(default_factory=Counter)  # samples by index of their bucket
    # Lines that no bundled font can render, by script of the first missing character ("cjk", "thai").
    fontless: Counter[str] = field(default_factory=Counter)

    def add(self, other: Counts) -> None:
        """Adds the sums over other samples."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)


def count_sample(counts: Counts, sample: Sample, buckets: tuple[Bucket, ...]) -> None:
    """Adds one sample to the sums; its bucket too, if there are buckets."""
    height, width = sample.image.shape[:2]
    if buckets:
        counts.buckets[nearest_bucket(buckets, width, height)] += 1
    valid = [line for line in sample.layout.lines if line.valid and line.text.strip()]
    counts.lines += len(sample.layout.lines)
    counts.valid_lines += len(valid)
    counts.without_text += not valid
    for line in valid:
        if missing := missing_glyphs(line.text):
            counts.fontless[unicodedata.name(missing[0], "unknown").partition(" ")[0].lower()] += 1
        pixels = text_height(line, height, width)
        counts.lengths[bin_of(len(line.text), LENGTH_EDGES)] += 1
        counts.heights_pixels[bin_of(pixels, HEIGHT_EDGES_PIXELS)] += 1
        counts.heights_percent[bin_of(100 * pixels / height, HEIGHT_EDGES_PERCENT)] += 1


def text_height(line: TextLine, height_pixels: int, width_pixels: int) -> float:
    """The mean length in pixels of the two edges at the ends of the line."""
    quad = np.array(quad_of(line.polygon)) * (width_pixels, height_pixels)
    return float(np.linalg.norm(quad[3] - quad[0]) + np.linalg.norm(quad[2] - quad[1])) / 2


def bin_of(value: float, edges: tuple[int, ...]) -> int:
    """The index of the bin: bin i covers edges[i] <= value < edges[i + 1], the last bin all above."""
    return max(0, int(np.searchsorted(edges, value, side="right")) - 1)


def bin_names(edges: tuple[int, ...], unit: str = "") -> list[str]:
    """Labels of the bins; without a unit they are ranges of whole numbers."""
    names = []
    for low, high in itertools.pairwise(edges):
        names.append(f"{low}-{high}{unit}" if unit else str(low) if high == low + 1 else f"{low}-{high - 1}")
    return [*names, f"{edges[-1]}{unit} and more"]
