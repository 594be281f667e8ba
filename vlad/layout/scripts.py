"""Writing systems: the script of a text, which decides its font and whether it has to be shaped.

Latin, Greek, Cyrillic and similar scripts are simple: each character is a glyph in a cell of its own. The scripts
listed here have letters that join, marks that stack, or lines that run right to left or top to bottom; they are shaped
as a whole.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

# First and last code point of the Unicode blocks of a script.
BLOCKS: dict[str, tuple[tuple[int, int], ...]] = {
    "Hebrew": ((0x0590, 0x05FF), (0xFB1D, 0xFB4F)),
    "Arabic": ((0x0600, 0x06FF), (0x0750, 0x077F), (0x08A0, 0x08FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFF)),
    "Devanagari": ((0x0900, 0x097F), (0xA8E0, 0xA8FF)),
    "Thai": ((0x0E00, 0x0E7F),),
    "Hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF)),
    "Kana": ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9D)),
    "Han": ((0x2E80, 0x2FDF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
    # Other scripts whose letters join or stack, from Bengali to Sinhala and from Lao to Khmer; and those written right
    # to left, up to N'Ko.
    "Indic": ((0x0980, 0x0DFF), (0x0E80, 0x109F), (0x1780, 0x17FF)),
    "Syriac": ((0x0700, 0x074F), (0x0780, 0x085F)),
}
CJK = ("Hangul", "Kana", "Han")
SIMPLE = "simple"
# CJK punctuation and fullwidth forms: taken for Han.
_CJK_PUNCTUATION = ((0x3000, 0x303F), (0xFF00, 0xFFEF))


@lru_cache(maxsize=65536)
def _script_of_character(character: str) -> str:
    if character.isspace():
        return SIMPLE
    point = ord(character)
    for script, blocks in BLOCKS.items():
        if any(first <= point <= last for first, last in blocks):
            return script
    return "Han" if any(first <= point <= last for first, last in _CJK_PUNCTUATION) else SIMPLE


@lru_cache(maxsize=65536)
def script_of(text: str) -> str:
    """The most frequent script of BLOCKS in the text; SIMPLE where there is none. A single kana makes it Japanese."""
    counts = Counter(map(_script_of_character, text))
    del counts[SIMPLE]
    if counts["Kana"]:
        return "Kana"
    return max(counts, key=counts.__getitem__, default=SIMPLE)
