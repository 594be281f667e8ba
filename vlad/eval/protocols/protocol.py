"""What the protocols share: what an image should carry, what was read in it, and scores as ratios of sums.

    Wanted, Reading -- a protocol's `score` --> terms of one image
    terms of all images -- sums --> values -- a protocol's `combine` --> values with those derived from others

Every published figure is a ratio of two sums over images: means over images (of 1 each), over lines or words.
So the sums of each prompt's images are all that has to be kept, and what the bootstrap draws from.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from vlad.types import TextLine

Mode = Literal["strict", "corrected"]
MODES: tuple[Mode, ...] = get_args(Mode)
_STRAIGHT_QUOTES = re.compile(r"'(.*?)'")
EPSILON = 1e-8  # of MARIO-Eval's precision, recall and F


@dataclass(frozen=True)
class Wanted:
    """One prompt of a benchmark: what its images should show.

    `strings` are the texts that the file itself names, or else the prompt's quoted strings. `lines` holds them with
    polygons (0..1) where the file has polygons, else it is empty. `reference` is a real image's path, or None.
    """

    key: str
    prompt: str
    strings: tuple[str, ...]
    lines: tuple[TextLine, ...] = ()
    subset: str = ""
    reference: str | None = None


@dataclass(frozen=True)
class Reading:
    """What an engine read in an image, in its own order; `crops` is its text of each polygon of `Wanted.lines`.

    `crops` is None where the polygons were not read one by one.
    """

    lines: tuple[TextLine, ...]
    crops: tuple[str, ...] | None = None

    @property
    def words(self) -> list[str]:
        """The words of all lines, in the engine's order and spelling."""
        return [word for line in self.lines for word in line.text.split()]


@dataclass(frozen=True)
class Term:
    """What one image adds to a metric's two sums; the metric is the ratio of the sums."""

    amount: float
    of: float = 1.0


Terms = dict[str, Term]


@dataclass(frozen=True)
class Protocol:
    """One published way of scoring.

    `score` and `combine` are pure. `ranked_by` is the metric that orders the galleries; `falling` are metrics of
    which less is better. `native_engine` names what its authors read with: figures of another engine are others.
    """

    name: str
    title: str
    metrics: tuple[str, ...]
    ranked_by: str
    native_engine: str
    score: Callable[[Wanted, Reading, Mode], Terms]
    combine: Callable[[dict[str, float]], dict[str, float]]
    quirks: str
    falling: frozenset[str] = frozenset()
    needs_polygons: bool = False
    # Whether a prompt asks for anything, as the scorer sees it; where none does, its figures are left out.
    asks: Callable[[Wanted, Mode], bool] = lambda wanted, mode: True


def as_they_are(values: dict[str, float]) -> dict[str, float]:
    """The `combine` of a protocol none of whose metrics is derived from others."""
    return values


def pooled(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Each metric's ratio of sums; one whose lower sum is 0 (nothing was asked) is left out."""
    return {name: amount / of for name, (amount, of) in sums.items() if of}


def pool_terms(images: Iterable[Terms], combine: Callable[[dict[str, float]], dict[str, float]]) -> dict[str, float]:
    """The metrics of all images."""
    sums: dict[str, tuple[float, float]] = {}
    for terms in images:
        add_terms(sums, terms)
    return combine(pooled(sums))


def add_terms(sums: dict[str, tuple[float, float]], terms: Terms) -> None:
    """Adds an image's terms to the sums, in place."""
    for name, term in terms.items():
        amount, of = sums.get(name, (0.0, 0.0))
        sums[name] = (amount + term.amount, of + term.of)


def straight_quoted(prompt: str) -> list[str]:
    """What stands between straight single marks, as the published scorers of MARIO-Eval and CVTG-2K cut it out."""
    return _STRAIGHT_QUOTES.findall(prompt)


def lower_words(texts: Iterable[str]) -> list[str]:
    """All texts split at white space, in lower case; punctuation stays on its word."""
    return [word for text in texts for word in text.lower().split()]


def matches(a: Sequence[str], b: Sequence[str]) -> int:
    """How many items two multisets share."""
    return (Counter(a) & Counter(b)).total()
