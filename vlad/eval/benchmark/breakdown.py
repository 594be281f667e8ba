"""Breakdown of accuracy by text height, length, number of lines, script and letter case.

A target string counts as read when a run of the words read, joined, is the string, both without white space: so a word
that the engine splits, or two that it joins, do not count against the image. Each run is used once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlad.data.lint.sample_statistics import bin_names, bin_of
from vlad.data.shards.writer import script_of
from vlad.eval.intervals import wilson_interval
from vlad.eval.protocols.protocol import OCRResult
from vlad.layout.polygons import quad_of
from vlad.layout.reading_order import reading_order
from vlad.types import Polygon

# Percent of the image's height, so that an image's size does not matter.
HEIGHT_EDGES_PERCENT = (0, 2, 4, 6, 8, 12, 16, 24, 32)
LENGTH_EDGES = (1, 3, 5, 7, 9, 13, 17, 25, 33)
LINE_EDGES = (1, 2, 3, 4, 5, 6, 9)
UNKNOWN = "unknown"
DIMENSIONS = {
    "height": "text height, % of the image's",
    "length": "characters of the string",
    "lines": "strings in the image",
    "script": "script",
    "case": "letter case",
}


def strings_read(strings: Sequence[str], reading: OCRResult) -> list[tuple[bool, bool]]:
    """For every target string whether it was read, and whether in its own letter case."""
    words = [word for line in reading_order(reading.lines) for word in line.text.split()]
    used = [False] * len(words)
    return [_read(string, words, used) for string in strings]


def _read(string: str, words: list[str], used: list[bool]) -> tuple[bool, bool]:
    target = "".join(string.split())
    if not target:
        return True, True
    best: range | None = None
    for start in range(len(words)):
        text = ""
        for end in range(start, len(words)):
            if used[end] or len(text) >= len(target):
                break
            text += words[end]
            if text.casefold() == target.casefold():
                # A later run in the right case is preferred.
                if text == target:
                    return _take(range(start, end + 1), used, True)
                best = best or range(start, end + 1)
                break
    return _take(best, used, False) if best is not None else (False, False)


def _take(run: range, used: list[bool], in_case: bool) -> tuple[bool, bool]:
    for number in run:
        used[number] = True
    return True, in_case


def case_of(text: str) -> str:
    """upper, lower, Capitalised, miXed, or "none" where no letter has a case."""
    letters = [character for character in text if character.isupper() or character.islower()]
    if not letters:
        return "none"
    for name, holds in (("upper", str.isupper), ("lower", str.islower)):
        if all(map(holds, letters)):
            return name
    words = ["".join(c for c in word if c.isupper() or c.islower()) for word in text.split()]
    capitalised = all(word[0].isupper() and not any(map(str.isupper, word[1:])) for word in words if word)
    return "capitalised" if capitalised else "mixed"


def height_share(polygon: Polygon, aspect: float = 1.0) -> float:
    """Height of a line over the image's: of its quad's left and right edges. `aspect` is the image's width over
    its height."""
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = quad_of(polygon)
    left = ((dx - ax) ** 2 * aspect**2 + (dy - ay) ** 2) ** 0.5
    right = ((cx - bx) ** 2 * aspect**2 + (cy - by) ** 2) ** 0.5
    return (left + right) / 2


@dataclass
class Tally:
    """Strings of one bin: all, those read, those read in their own case."""

    strings: int = 0
    read: int = 0
    in_case: int = 0

    def add(self, read: bool, in_case: bool) -> None:
        """One more string."""
        self.strings += 1
        self.read += read
        self.in_case += in_case


@dataclass
class Breakdown:
    """Counts by dimension and bin, in constant memory."""

    tallies: dict[str, dict[str, Tally]] = field(default_factory=lambda: {name: {} for name in DIMENSIONS})

    def add(
        self,
        strings: Sequence[str],
        read: Sequence[tuple[bool, bool]],
        polygons: Sequence[Polygon | None],
        aspect: float = 1.0,
    ) -> None:
        """Counts one image's strings; a polygon is None where the string's place is not known."""
        for string, found, polygon in zip(strings, read, polygons, strict=True):
            height = UNKNOWN
            if polygon is not None:
                number = bin_of(100 * height_share(polygon, aspect), HEIGHT_EDGES_PERCENT)
                height = bin_names(HEIGHT_EDGES_PERCENT, " %")[number]
            bins = {
                "height": height,
                "length": bin_names(LENGTH_EDGES)[bin_of(len(string), LENGTH_EDGES)],
                "lines": bin_names(LINE_EDGES)[bin_of(len(strings), LINE_EDGES)],
                "script": script_of(string),
                "case": case_of(string),
            }
            for dimension, name in bins.items():
                self.tallies[dimension].setdefault(name, Tally()).add(*found)

    @property
    def strings(self) -> int:
        """How many strings were counted."""
        return sum(tally.strings for tally in self.tallies["script"].values())

    def rows(self, dimension: str) -> list[tuple[str, Tally]]:
        """The dimension's non-empty bins, in order."""
        orders = {
            "height": [*bin_names(HEIGHT_EDGES_PERCENT, " %"), UNKNOWN],
            "length": bin_names(LENGTH_EDGES),
            "lines": bin_names(LINE_EDGES),
            "case": ["upper", "capitalised", "lower", "mixed", "none"],
        }
        found = self.tallies[dimension]
        order = orders.get(dimension) or sorted(found, key=lambda name: (-found[name].strings, name))
        return [(name, found[name]) for name in order if name in found]

    def to_json(self) -> dict[str, dict[str, dict[str, float]]]:
        """Every bin's count and accuracies, as plain values."""
        return {
            dimension: {
                name: {
                    "strings": tally.strings,
                    "accuracy": tally.read / tally.strings,
                    "accuracy_with_case": tally.in_case / tally.strings,
                }
                for name, tally in self.rows(dimension)
            }
            for dimension in DIMENSIONS
        }


def draw_breakdown(breakdown: Breakdown, path: Path) -> None:
    """The accuracies of all dimensions as one image, with Wilson's 95 % intervals and counts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [name for name in DIMENSIONS if breakdown.rows(name)]
    figure, axes = plt.subplots(1, len(shown), figsize=(3.1 * len(shown), 3.6), squeeze=False, sharey=True)
    for axis, dimension in zip(axes[0], shown, strict=True):
        rows = breakdown.rows(dimension)
        places = range(len(rows))
        shares = [tally.read / tally.strings for _, tally in rows]
        spans = [wilson_interval(tally.read, tally.strings) for _, tally in rows]
        below = [share - low for share, (low, _) in zip(shares, spans, strict=True)]
        above = [high - share for share, (_, high) in zip(shares, spans, strict=True)]
        axis.bar(places, shares, color="#4363d8", width=0.7, label="read")
        axis.errorbar(places, shares, yerr=[below, above], fmt="none", ecolor="#222222", elinewidth=1, capsize=2)
        in_case = [tally.in_case / tally.strings for _, tally in rows]
        axis.scatter(places, in_case, marker="_", s=160, color="#f58231", label="in its letter case", zorder=3)
        labels = [f"{name}\n({tally.strings})" for name, tally in rows]
        axis.set_xticks(places, labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axis.set(title=DIMENSIONS[dimension], xlim=(-0.6, max(len(rows), 4) - 0.4), ylim=(0, 1.02))
        axis.title.set_fontsize(9)
        axis.grid(axis="y", alpha=0.3)
    axes[0][0].set_ylabel("share of strings read")
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=7, loc="upper left", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
