"""What samples hold, counted into histograms and training shapes."""

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
    """What samples hold, as sums."""

    samples: int = 0
    sound: int = 0
    bytes: int = 0
    lines: int = 0
    valid_lines: int = 0
    without_text: int = 0  # samples that have no valid line
    lengths: Counter[int] = field(default_factory=Counter)  # valid lines by the bin of their characters
    heights_pixels: Counter[int] = field(default_factory=Counter)
    heights_percent: Counter[int] = field(default_factory=Counter)  # of the image's height
    buckets: Counter[int] = field(default_factory=Counter)  # samples by the number of their bucket
    # Lines that no font of ours draws, by the script of the first character that is missing ("cjk", "thai").
    fontless: Counter[str] = field(default_factory=Counter)

    def add(self, other: Counts) -> None:
        """Adds the sums of other samples."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)


def count_sample(counts: Counts, sample: Sample, buckets: tuple[Bucket, ...]) -> None:
    """Adds what one sample holds; its bucket too, where there are any."""
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
    """The mean length, in pixels, of the two edges that stand at the ends of the line."""
    quad = np.array(quad_of(line.polygon)) * (width_pixels, height_pixels)
    return float(np.linalg.norm(quad[3] - quad[0]) + np.linalg.norm(quad[2] - quad[1])) / 2


def bin_of(value: float, edges: tuple[int, ...]) -> int:
    """The number of the bin: bin i holds edges[i] <= value < edges[i + 1], the last one all above."""
    return max(0, int(np.searchsorted(edges, value, side="right")) - 1)


def bin_names(edges: tuple[int, ...], unit: str = "") -> list[str]:
    """What the bins are called; whole numbers where there is no unit."""
    names = []
    for low, high in itertools.pairwise(edges):
        names.append(f"{low}-{high}{unit}" if unit else str(low) if high == low + 1 else f"{low}-{high - 1}")
    return [*names, f"{edges[-1]}{unit} and more"]
