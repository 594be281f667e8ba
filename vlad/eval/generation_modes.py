"""The ways in which a run draws held-out words, by name; light to import, for command lines."""

from __future__ import annotations

from typing import Literal

Mode = Literal["refit", "true layout", "raw", "no layout"]
MODES: tuple[Mode, ...] = ("refit", "true layout", "raw")


def plain(mode: str) -> str:
    """The name as folders and options have it: true-layout."""
    return mode.replace(" ", "-")


MOST_WORDS = 10_000  # all are drawn before the first is read
WAYS: dict[str, Mode] = {plain(mode): mode for mode in MODES}
