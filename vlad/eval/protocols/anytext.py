"""The AnyText benchmark (arXiv 2311.03054): each line is read alone, in the crop of its polygon.

    Sen.ACC  share of lines read exactly, case and punctuation counting
    NED      1 - Levenshtein distance / (length of the longer + 1e-5), the mean over lines

Strict has the benchmark's limits: the first 5 legible lines of an image, the first 20 characters of each.
Corrected: every legible line, whole and stripped of white space, and no 1e-5.
The published scorer maps all characters outside its recogniser's alphabet to one; here they stay themselves.
"""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein

from vlad.eval.protocols.protocol import (
    BenchmarkPrompt,
    MetricTerm,
    MetricTerms,
    OCRResult,
    Protocol,
    ScoringMode,
    no_derived_metrics,
)

MOST_LINES, MOST_CHARACTERS = 5, 20


def line_similarity(a: str, b: str, mode: ScoringMode) -> float:
    """NED, a similarity despite its name: 1 is equal."""
    longer = max(len(a), len(b)) + (1e-5 if mode == "strict" else 0)
    return 1 - Levenshtein.distance(a, b) / longer if longer else 1.0


def score(prompt: BenchmarkPrompt, ocr: OCRResult, mode: ScoringMode) -> MetricTerms:
    """One image's lines; `ocr.crops` has the text of every line's crop, in the order of `prompt.lines`."""
    assert ocr.crops is not None and len(ocr.crops) == len(prompt.lines)
    pairs = [(line.text, crop) for line, crop in zip(prompt.lines, ocr.crops, strict=True) if line.valid]
    if mode == "strict":
        pairs = [(text[:MOST_CHARACTERS], crop) for text, crop in pairs[:MOST_LINES]]
    else:
        pairs = [(text.strip(), crop.strip()) for text, crop in pairs]
    exact = sum(text == crop for text, crop in pairs)
    similarity = sum(line_similarity(text, crop, mode) for text, crop in pairs)
    return {"sentence_accuracy": MetricTerm(float(exact), len(pairs)), "ned": MetricTerm(similarity, len(pairs))}


ANYTEXT = Protocol(
    name="anytext",
    title="AnyText benchmark",
    metrics=("sentence_accuracy", "ned"),
    ranked_by="ned",
    native_engine="DuGuangOCR (convnextTiny general recognition)",
    score=score,
    combine=no_derived_metrics,
    quirks="5 lines of 20 characters; NED over length + 1e-5",
    needs_polygons=True,
)
