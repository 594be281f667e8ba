"""Lines of text files."""

from __future__ import annotations


def split_lines(text: str) -> list[str]:
    """The lines of a file's text, which end at line feeds alone.

    `str.splitlines` also cuts at U+2028 and other separators, which strings of JSON and captions may hold.
    """
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
