"""`UserError` for mistakes in a user's input, and helpers that word error messages.

`UserError` is the only exception that the command lines catch: its text names the place and the remedy, and the
process ends with exit code 2. Any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

DISTRIBUTION = "vlad-diffusion"  # on the package index, where `vlad` is another project


class UserError(ValueError):
    """A mistake in what the user gave: what was wrong, where, and what to do about it."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " Did you mean 'x'?" for the closest of `known`, else the empty string."""
    close = get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def reason_of(error: Exception) -> str:
    """Class and message of an error on one line of at most 200 characters (some messages carry data along)."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 image", "2 images"."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def as_sentence(reason: object) -> str:
    """The reason on one line, ending in one punctuation mark, to be quoted at the end of another message."""
    text = " ".join(str(reason).split())
    return text if text.endswith((".", "?", "!")) else f"{text}."


def install_command(extra: str) -> str:
    """The command that installs an optional dependency."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"
