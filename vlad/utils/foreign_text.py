"""Text that comes from files (captions, names, recipes, errors of libraries), made safe to be shown.

On a terminal, control characters could retitle its window, hide or overwrite what stands there; on a page and on a
terminal, bidirectional overrides let a text read as another one.
"""

from __future__ import annotations

import re
import sys
from typing import Any, TextIO

from vlad.utils.secrets import redacted

MOST_CHARACTERS = 4000  # of a line on a terminal
# Control characters but tab and line feed, line and paragraph separators, bidirectional overrides and isolates, and
# surrogates, which stand for bytes of file names that are not UTF-8. Joiners, which scripts and emoji need, stay.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# What tqdm writes to move between bars; its bars begin with a carriage return.
_BAR_MOVES = re.compile(r"\n*(\x1b\[A)*")


def printable(text: str, most: int | None = None) -> str:
    """The text with unsafe characters as escapes (`\\x1b`), and each line cut in its middle to about `most` characters:
    an error's reason stands at its end."""
    if most is not None and len(text) > most:
        half = most // 2
        lines = text.split("\n")
        text = "\n".join(line if len(line) <= most else f"{line[:half]}...{line[-half:]}" for line in lines)
    return _UNSAFE.sub(_escape, text)


def printable_line(text: str) -> str:
    """`printable` with line feeds and tabs escaped too: a name or a caption inside a line of output."""
    return re.sub(r"[\n\t]", _escape, printable(text))


def _escape(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


class ForeignTextStream:
    """A text stream that writes what `printable` and `redacted` leave; progress bars keep their moves."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if _BAR_MOVES.fullmatch(text):
            self._stream.write(text)
            return len(text)
        start = "\r" if text.startswith("\r") else ""
        body = text[len(start) :]
        end = body[len(body.rstrip("\r\n")) :].replace("\r\n", "\n")
        body = body.rstrip("\r\n")
        self._stream.write(start + redacted(printable(body, MOST_CHARACTERS)) + end)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)


def guard_terminal() -> None:
    """Makes everything that this process prints, its libraries' warnings and tracebacks too, safe to be shown."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, ForeignTextStream):
            setattr(sys, name, ForeignTextStream(stream))
