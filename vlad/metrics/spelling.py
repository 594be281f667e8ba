"""Spelling accuracy: word and letter accuracy of OCR text against the wanted strings.

Both sides are concatenated, the OCR text in reading order; white space and letter case are ignored. A word that the
engine splits in two thus counts as correct.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rapidfuzz.distance import Levenshtein

from vlad.layout.reading_order import reading_order
from vlad.types import TextLine


def normalised(strings: Iterable[str]) -> str:
    """The strings as they are compared: concatenated, without white space, casefolded."""
    return "".join("".join(strings).split()).casefold()


def ocr_text(lines: Sequence[TextLine]) -> str:
    """The OCR text of an image as it is compared."""
    return normalised(line.text for line in reading_order(lines))


def spells_exactly(lines: Sequence[TextLine], strings: Sequence[str]) -> bool:
    """Whether the OCR lines of an image are the wanted strings, no letter more or less."""
    return ocr_text(lines) == normalised(strings)


def word_accuracy(readings: Sequence[Sequence[TextLine]], wanted: Sequence[Sequence[str]]) -> float:
    """The share (0..1) of at least one image whose OCR lines are its wanted strings."""
    assert len(readings) == len(wanted) > 0
    return sum(map(spells_exactly, readings, wanted)) / len(wanted)


def letter_accuracy(readings: Sequence[Sequence[TextLine]], wanted: Sequence[Sequence[str]]) -> float:
    """1 - edits / wanted letters over all images (0..1): 1 - CER with the error of each image capped at 1.

    An image's edits are the Levenshtein distance of OCR text and wanted text, at most the number of wanted letters.
    """
    assert len(readings) == len(wanted) > 0
    letters = [normalised(strings) for strings in wanted]
    edits = [min(len(b), levenshtein(ocr_text(a), b)) for a, b in zip(readings, letters, strict=True)]
    return 1 - sum(edits) / max(1, sum(map(len, letters)))


def levenshtein(a: str, b: str) -> int:
    """The edit distance: the fewest insertions, deletions and substitutions that turn `a` into `b`."""
    return Levenshtein.distance(a, b)
