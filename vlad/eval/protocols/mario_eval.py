"""MARIO-Eval (TextDiffuser, arXiv 2305.10855): the protocol of the paper's Table I.

    truth       the words of every '...' of the lower-cased prompt
    prediction  the words read, lower-cased, punctuation kept
    precision   matched / (read + 1e-8), recall: matched / (target words + 1e-8), each the mean over images
    F           of the mean precision and the mean recall
    accuracy    share of images whose sorted words, joined, are the same string

Strict computes as the published scorer does: an apostrophe inside a quotation ('don't') cuts the truth; only straight
single marks quote; joined words are equal where they are split differently ({ab, c} = {a, bc}); a prompt without
target text is exact when nothing is read and counts 0 for precision and recall.
Corrected: quotations as `models/text_encoder/prompt.py` finds them (any marks, apostrophes recognised), multisets are
compared as multisets, and prompts without target text are left out.
"""

from __future__ import annotations

from vlad.eval.protocols.protocol import (
    EPSILON,
    BenchmarkPrompt,
    MetricTerm,
    MetricTerms,
    OCRResult,
    Protocol,
    ScoringMode,
    lower_words,
    matches,
    straight_quoted,
)


def target_words(prompt: BenchmarkPrompt, mode: ScoringMode) -> list[str]:
    """The target words as the scorer extracts them."""
    if mode == "strict":
        return lower_words(straight_quoted(prompt.text.strip().lower()))
    return lower_words(prompt.strings)


def score(prompt: BenchmarkPrompt, ocr: OCRResult, mode: ScoringMode) -> MetricTerms:
    """One image's precision, recall and exactness."""
    truth, read = target_words(prompt, mode), lower_words(ocr.words)
    if mode == "corrected" and not truth:
        return {}
    matched = matches(truth, read)
    exact = "".join(sorted(truth)) == "".join(sorted(read)) if mode == "strict" else sorted(truth) == sorted(read)
    return {
        "accuracy": MetricTerm(float(exact)),
        "precision": MetricTerm(matched / (len(read) + EPSILON)),
        "recall": MetricTerm(matched / (len(truth) + EPSILON)),
    }


def combine(values: dict[str, float]) -> dict[str, float]:
    """Adds F of the mean precision and recall."""
    if "precision" not in values:
        return values
    precision, recall = values["precision"], values["recall"]
    return {**values, "f_measure": 2 * precision * recall / (precision + recall + EPSILON)}


MARIO = Protocol(
    name="mario",
    title="MARIO-Eval",
    metrics=("accuracy", "precision", "recall", "f_measure"),
    ranked_by="recall",
    native_engine="MaskTextSpotter v3",
    score=score,
    combine=combine,
    quirks="only straight single marks quote; apostrophes cut the truth; {ab, c} equals {a, bc}; F of the mean P and R",
    has_targets=lambda prompt, mode: bool(target_words(prompt, mode)),
)
