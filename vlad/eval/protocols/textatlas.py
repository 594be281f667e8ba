"""TextAtlasEval (TextAtlas5M, arXiv 2502.07870): dense text, words matched with a tolerance.

    accuracy, precision  words read that are like a target (fuzzy ratio of at least 80), over targets, words read
    f_measure            of the two, whose sums run over all images (micro average)
    cer                  edits between the whole texts over their length, the mean over images

The fuzzy ratio of a and b is 100 * 2 * (longest common subsequence) / (|a| + |b|).
Strict computes as the published scorer does: each read word takes the first free target word that is like it, in the
engine's order; the ratio is rounded before it is compared (79.5 passes); CER is divided by the longer of both texts,
letter case counts in it, and images without target text are left out.
Corrected: equal words are paired before those that are only alike, the ratio is not rounded, and CER is what the name
means: edits over the target's letters (above 1 where too much is read), in reading order, white space normalised.
"""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz import fuzz
from rapidfuzz.distance import Levenshtein

from vlad.eval.protocols.protocol import (
    BenchmarkPrompt,
    MetricTerm,
    MetricTerms,
    OCRResult,
    Protocol,
    ScoringMode,
    lower_words,
)
from vlad.layout.reading_order import reading_order

LEAST_RATIO = 80


def matched_words(truth: Sequence[str], read: Sequence[str], mode: ScoringMode) -> int:
    """How many target words are matched by a word read, each used once."""
    if mode == "strict":
        free = list(truth)
        for word in read:
            like = next((other for other in free if round(fuzz.ratio(word, other)) >= LEAST_RATIO), None)
            if like is not None:
                free.remove(like)
        return len(truth) - len(free)
    pairs = sorted(
        (-ratio, i, j)
        for i, word in enumerate(read)
        for j, other in enumerate(truth)
        if (ratio := fuzz.ratio(word, other)) >= LEAST_RATIO
    )
    used_read: set[int] = set()
    used_truth: set[int] = set()
    for _, i, j in pairs:
        if i not in used_read and j not in used_truth:
            used_read.add(i)
            used_truth.add(j)
    return len(used_truth)


def character_errors(truth: str, read: str, mode: ScoringMode) -> MetricTerm:
    """CER of an image; without target text the image is left out of the mean."""
    if not truth:
        return MetricTerm(0, 0)
    return MetricTerm(
        Levenshtein.distance(truth, read) / (max(len(truth), len(read)) if mode == "strict" else len(truth))
    )


def score(prompt: BenchmarkPrompt, ocr: OCRResult, mode: ScoringMode) -> MetricTerms:
    """One image's words and letters."""
    lines = ocr.lines if mode == "strict" else reading_order(ocr.lines)
    truth_text = " ".join(prompt.strings)
    read_text = " ".join(line.text.strip() for line in lines if line.text)
    if mode == "corrected":
        truth_text, read_text = (" ".join(text.split()) for text in (truth_text, read_text))
    truth, read = lower_words([truth_text]), lower_words([read_text])
    matched = matched_words(truth, read, mode)
    return {
        "accuracy": MetricTerm(matched, len(truth)),
        "precision": MetricTerm(matched, len(read)),
        "cer": character_errors(truth_text, read_text, mode),
    }


def combine(values: dict[str, float]) -> dict[str, float]:
    """Adds F; 0 where nothing was read or matched."""
    if "accuracy" not in values:
        return values
    precision, recall = values.get("precision", 0.0), values["accuracy"]
    total = precision + recall
    return {**values, "precision": precision, "f_measure": 2 * precision * recall / total if total else 0.0}


TEXTATLAS = Protocol(
    name="textatlas",
    title="TextAtlasEval",
    metrics=("accuracy", "precision", "f_measure", "cer"),
    ranked_by="accuracy",
    native_engine="PaddleOCR (English)",
    score=score,
    combine=combine,
    quirks="first free word of a rounded ratio of 80 matches; CER over the longer text",
    lower_is_better=frozenset({"cer"}),
)
