"""Scripts: which one a text is written in, and what drawing it takes.

Latin, Greek, Cyrillic and their like are simple: a character is a glyph in a cell of its own. The others here have
letters that join, marks that stack, lines that run from the right or down the page; they are shaped as a whole.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

# First and last code point of the blocks of a script.
BLOCKS: dict[str, tuple[tuple[int, int], ...]] = {
    "Hebrew": ((0x0590, 0x05FF), (0xFB1D, 0xFB4F)),
    "Arabic": ((0x0600, 0x06FF), (0x0750, 0x077F), (0x08A0, 0x08FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFF)),
    "Devanagari": ((0x0900, 0x097F), (0xA8E0, 0xA8FF)),
    "Thai": ((0x0E00, 0x0E7F),),
    "Hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF)),
    "Kana": ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9D)),
    "Han": ((0x2E80, 0x2FDF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
    # Others whose letters join or stack, from Bengali to Sinhala and from Lao to Khmer; and from the right, to N'Ko.
    "Indic": ((0x0980, 0x0DFF), (0x0E80, 0x109F), (0x1780, 0x17FF)),
    "Syriac": ((0x0700, 0x074F), (0x0780, 0x085F)),
}
CJK = ("Hangul", "Kana", "Han")
SIMPLE = "simple"
# Punctuation and forms that belong to the East Asian scripts when nothing else does.
_WIDE = ((0x3000, 0x303F), (0xFF00, 0xFFEF))


@lru_cache(maxsize=65536)
def _script_of_character(character: str) -> str:
    if character.isspace():
        return SIMPLE
    point = ord(character)
    for script, blocks in BLOCKS.items():
        if any(first <= point <= last for first, last in blocks):
            return script
    return "Han" if any(first <= point <= last for first, last in _WIDE) else SIMPLE


@lru_cache(maxsize=65536)
def script_of(text: str) -> str:
    """The script that most of the text's characters are of, simple ones only where there is no other: of BLOCKS, or
    SIMPLE. Kana decide for Japanese beside any number of Han."""
    counts = Counter(map(_script_of_character, text))
    counts.pop(SIMPLE, None)
    return (
        "Kana" if counts["Kana"] else max(counts, key=lambda name: counts[name], default=SIMPLE) if counts else SIMPLE
    )
