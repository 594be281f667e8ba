"""What the protocols share: a benchmark's prompt, an OCR result, and metrics as ratios of sums.

    BenchmarkPrompt, OCRResult -- a protocol's `score` --> terms of one image
    terms of all images -- sums --> ratios -- a protocol's `combine` --> metrics with those derived from others

Every published metric is a ratio of two sums over images: a mean over images (of 1 each), over lines or over words.
So each prompt's sums are all that has to be kept, and what the bootstrap resamples.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from vlad.types import TextLine

ScoringMode = Literal["strict", "corrected"]
SCORING_MODES: tuple[ScoringMode, ...] = get_args(ScoringMode)
_STRAIGHT_QUOTES = re.compile(r"'(.*?)'")
EPSILON = 1e-8  # of MARIO-Eval's precision, recall and F


@dataclass(frozen=True)
class BenchmarkPrompt:
    """One prompt of a benchmark, with the texts that its images should spell.

    `strings` are the target texts that the file names, or else the prompt's quoted strings. `lines` holds them with
    polygons (0..1) where the file has polygons, else it is empty. `reference` is a real image's path, or None.
    """

    key: str
    text: str
    strings: tuple[str, ...]
    lines: tuple[TextLine, ...] = ()
    subset: str = ""
    reference: str | None = None


@dataclass(frozen=True)
class OCRResult:
    """The lines that an engine read in an image, in its own order; `crops` is its text of each prompt line's polygon.

    `crops` is None where the polygons were not read one by one.
    """

    lines: tuple[TextLine, ...]
    crops: tuple[str, ...] | None = None

    @property
    def words(self) -> list[str]:
        """The words of all lines, in the engine's order and spelling."""
        return [word for line in self.lines for word in line.text.split()]


@dataclass(frozen=True)
class MetricTerm:
    """What one image adds to a metric's two sums; the metric is the ratio of the sums."""

    numerator: float
    denominator: float = 1.0


MetricTerms = dict[str, MetricTerm]
Sums = dict[str, tuple[float, float]]  # numerator and denominator of every metric
Combine = Callable[[dict[str, float]], dict[str, float]]


@dataclass(frozen=True)
class Protocol:
    """One published way of scoring.

    `score` and `combine` are pure. `ranked_by` is the metric that orders the galleries. `native_engine` is the OCR
    engine of the published figures: those of another engine do not compare with them.
    """

    name: str
    title: str
    metrics: tuple[str, ...]
    ranked_by: str
    native_engine: str
    score: Callable[[BenchmarkPrompt, OCRResult, ScoringMode], MetricTerms]
    combine: Combine
    quirks: str
    lower_is_better: frozenset[str] = frozenset()
    needs_polygons: bool = False
    # Whether the scorer finds a target text in a prompt; where it finds none in any, its figures are left out.
    has_targets: Callable[[BenchmarkPrompt, ScoringMode], bool] = lambda prompt, mode: True


def no_derived_metrics(values: dict[str, float]) -> dict[str, float]:
    """The `combine` of a protocol none of whose metrics is derived from others."""
    return values


def ratios(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Each metric's ratio of sums; one whose denominator is 0 (no target text) is left out."""
    return {name: numerator / denominator for name, (numerator, denominator) in sums.items() if denominator}


def metrics_of_terms(images: Iterable[MetricTerms], combine: Combine) -> dict[str, float]:
    """The metrics of all images."""
    sums: Sums = {}
    for terms in images:
        add_terms(sums, terms)
    return combine(ratios(sums))


def add_terms(sums: Sums, terms: MetricTerms) -> None:
    """Adds an image's terms to the sums, in place."""
    for name, term in terms.items():
        numerator, denominator = sums.get(name, (0.0, 0.0))
        sums[name] = (numerator + term.numerator, denominator + term.denominator)


def straight_quoted(prompt: str) -> list[str]:
    """The strings between straight single marks, as the published scorers of MARIO-Eval and CVTG-2K cut them out."""
    return _STRAIGHT_QUOTES.findall(prompt)


def lower_words(texts: Iterable[str]) -> list[str]:
    """All texts split at white space, in lower case; punctuation stays on its word."""
    return [word for text in texts for word in text.lower().split()]


def matches(a: Sequence[str], b: Sequence[str]) -> int:
    """How many items two multisets share."""
    return (Counter(a) & Counter(b)).total()
