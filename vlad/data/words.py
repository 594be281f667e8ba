"""The vocabulary of rendered signs and posters: training words, and held-out words that are never trained on."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

HELD_OUT_WORDS = 200
SPLIT_SEED = 917  # of arXiv 2501.00917; another seed holds out other words


@cache
def all_words() -> tuple[str, ...]:
    """Every word of words.txt, upper case, sorted."""
    text = files("vlad.data").joinpath("words.txt").read_text(encoding="ascii")
    return tuple(sorted({word.upper() for word in text.split()}))


@cache
def held_out_words(seed: int = SPLIT_SEED) -> tuple[str, ...]:
    """The words that no training image shows: the 200 with the smallest hash under the seed."""

    def rank(word: str) -> bytes:
        return hashlib.sha256(f"{seed}:{word}".encode()).digest()

    return tuple(sorted(sorted(all_words(), key=rank)[:HELD_OUT_WORDS]))


@cache
def training_words() -> tuple[str, ...]:
    """All words that are not held out."""
    held_out = set(held_out_words())
    return tuple(word for word in all_words() if word not in held_out)


@cache
def rare_words() -> frozenset[str]:
    """The rare words of the open benchmark, upper case: none is in words.txt, and no training image shows one."""
    text = files("vlad.data").joinpath("rare_words.txt").read_text(encoding="ascii")
    return frozenset(word.upper() for word in text.split())


@cache
def known_words(min_letters: int, max_letters: int) -> tuple[str, ...]:
    """The training words of these lengths."""
    return tuple(word for word in training_words() if min_letters <= len(word) <= max_letters)
