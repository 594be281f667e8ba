"""Line accuracy: which of the lines that an image is to carry does an OCR engine read in it?

    OCR boxes -> rows -> runs of neighbouring boxes in a row -> each wanted line takes the run nearest to it

An engine may read a line as several boxes, and two lines that stand side by side as one box. White space and letter
case are ignored, as in `spelling.py`; letter case is reported beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

from vlad.data.lint.sample_statistics import bin_names, bin_of, text_height
from vlad.layout.reading_order import text_rows
from vlad.metrics.spelling import levenshtein, normalised
from vlad.types import TextLine

HEIGHT_EDGES_PIXELS = (0, 6, 8, 10, 12, 16, 24, 32)
HEIGHT_BANDS = tuple(bin_names(HEIGHT_EDGES_PIXELS))  # of letters
LEAST_SIMILARITY = 0.5  # 1 - edits / letters of the longer text: below it, a run of boxes is no reading of a line


@dataclass(frozen=True)
class LineReading:
    """What the engine reads of a wanted line: its boxes, none where the line is missing, and the edits to the line.

    Edits are at most the line's letters.
    """

    boxes: tuple[TextLine, ...]
    edits: int
    letters: int
    is_exact: bool
    has_case: bool  # exact, in the line's own letter case

    @property
    def is_found(self) -> bool:
        """Whether any of it was read."""
        return bool(self.boxes)


@dataclass(frozen=True)
class ImageReading:
    """What the engine reads of an image's lines, in their order, and the boxes that are no reading of any."""

    lines: tuple[LineReading, ...]
    extra: tuple[TextLine, ...]

    @property
    def is_exact(self) -> bool:
        """Whether every line is read exactly and nothing else is read."""
        return not self.extra and all(line.is_exact for line in self.lines)


def height_band(line: TextLine, height_pixels: int, width_pixels: int) -> str:
    """Which of HEIGHT_BANDS the height of a line's ink is in, in an image of this size."""
    return HEIGHT_BANDS[bin_of(text_height(line, height_pixels, width_pixels), HEIGHT_EDGES_PIXELS)]


@dataclass(frozen=True)
class _Run:
    """Neighbouring boxes of a row, by their numbers in the image."""

    numbers: frozenset[int]
    boxes: tuple[TextLine, ...]

    @property
    def text(self) -> str:
        return " ".join(box.text for box in self.boxes)


def match_lines(boxes: Sequence[TextLine], wanted: Sequence[str]) -> ImageReading:
    """Matches the OCR boxes of an image with the lines that it is to carry: the most similar pairs first."""
    runs, count = _runs(boxes)
    taken: dict[int, _Run] = {}
    free = set(range(count))
    # Two lines side by side in one box: only where both are exact, for nothing tells where one ends otherwise.
    texts = [normalised([line]) for line in wanted]
    read_whole = {normalised([run.text]): run for run in runs}
    unread = [number for number, text in enumerate(texts) if text not in read_whole]
    for one, other in permutations(unread, 2):
        run = read_whole.get(texts[one] + texts[other])
        if run is not None and run.numbers <= free and not taken.keys() & {one, other}:
            taken[one] = taken[other] = run
            free -= run.numbers
    joined = frozenset(taken)
    pairs = sorted(
        ((_similarity(run.text, line), -number, run) for number, line in enumerate(wanted) for run in runs),
        key=lambda pair: pair[:2],
        reverse=True,
    )
    for similarity, negative, run in pairs:
        if similarity >= LEAST_SIMILARITY and -negative not in taken and run.numbers <= free:
            taken[-negative] = run
            free -= run.numbers
    readings = tuple(_reading(line, taken.get(number), number in joined) for number, line in enumerate(wanted))
    ordered = [box for row in text_rows(boxes) for box in row]
    return ImageReading(readings, tuple(ordered[number] for number in sorted(free)))


def _runs(boxes: Sequence[TextLine]) -> tuple[list[_Run], int]:
    """All runs of boxes of one row, and the number of boxes."""
    runs, first = [], 0
    for row in text_rows(boxes):
        for start, end in combinations(range(len(row) + 1), 2):
            runs.append(_Run(frozenset(range(first + start, first + end)), tuple(row[start:end])))
        first += len(row)
    return runs, first


def _similarity(text: str, line: str) -> float:
    read, wanted = normalised([text]), normalised([line])
    return 1 - levenshtein(read, wanted) / max(1, len(read), len(wanted))


def _reading(line: str, run: _Run | None, is_joined: bool) -> LineReading:
    """The reading of a line; `is_joined` where its box holds another line too, and both exactly."""
    letters = len(normalised([line]))
    if run is None:
        return LineReading((), letters, letters, False, False)
    if is_joined:
        return LineReading(run.boxes, 0, letters, True, "".join(line.split()) in "".join(run.text.split()))
    edits = min(letters, levenshtein(normalised([run.text]), normalised([line])))
    has_case = "".join(run.text.split()) == "".join(line.split())
    return LineReading(run.boxes, edits, letters, edits == 0, has_case)
