"""Whether an image spells what was asked for.

What the engine read, in reading order, is joined to one string, and so are the wanted strings; spaces and
letter case do not count. So a word that the engine takes for two is not held against the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rapidfuzz.distance import Levenshtein

from vlad.layout.reading_order import reading_order
from vlad.types import TextLine


def joined(strings: Iterable[str]) -> str:
    """The strings as they are compared: one after the other, without white space, casefolded."""
    return "".join("".join(strings).split()).casefold()


def ocr_text(lines: Sequence[TextLine]) -> str:
    """What an engine read in one image, as it is compared."""
    return joined(line.text for line in reading_order(lines))


def spells_exactly(lines: Sequence[TextLine], strings: Sequence[str]) -> bool:
    """Whether the lines read in an image are the wanted strings, no letter more or less."""
    return ocr_text(lines) == joined(strings)


def word_accuracy(readings: Sequence[Sequence[TextLine]], wanted: Sequence[Sequence[str]]) -> float:
    """Share (0..1) of the images that read exactly; one reading and one list of strings an image, at least one."""
    assert len(readings) == len(wanted) > 0
    return sum(map(spells_exactly, readings, wanted)) / len(wanted)


def letter_accuracy(readings: Sequence[Sequence[TextLine]], wanted: Sequence[Sequence[str]]) -> float:
    """1 - edits / wanted letters over all images (0..1).

    An image's edits are the Levenshtein distance of read and wanted text, at most its number of wanted letters:
    no image counts for less than nothing.
    """
    assert len(readings) == len(wanted) > 0
    letters = [joined(strings) for strings in wanted]
    edits = [min(len(b), levenshtein(ocr_text(a), b)) for a, b in zip(readings, letters, strict=True)]
    return 1 - sum(edits) / max(1, sum(map(len, letters)))


def levenshtein(a: str, b: str) -> int:
    """The fewest insertions, deletions and replacements of one character that turn `a` into `b`."""
    return Levenshtein.distance(a, b)
