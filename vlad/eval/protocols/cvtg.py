"""CVTG-2K (TextCrafter, arXiv 2503.23461): the words of several places in one image.

    truth          the words of every '...' of the prompt, lower-cased
    word accuracy  share of the target words that were read anywhere
    NED            of each target word and the most similar word read: 1 - Levenshtein / (longer + 1e-5), the mean

Strict computes as the published scorer does: a word that was read once satisfies any number of target words, extra
words cost nothing, the most similar word is the one of `difflib`'s highest ratio (whose NED another may exceed), and
apostrophes cut the truth.
Corrected: a read word satisfies one target word, the most similar word is the one of the highest NED, the truth is
the file's list of sentences or else the quotations as `vlad/models/text_encoder/prompt.py` finds them, and no 1e-5.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from vlad.eval.protocols.anytext import line_similarity
from vlad.eval.protocols.protocol import (
    BenchmarkPrompt,
    MetricTerm,
    MetricTerms,
    OCRResult,
    Protocol,
    ScoringMode,
    lower_words,
    matches,
    no_derived_metrics,
    straight_quoted,
)


def target_words(prompt: BenchmarkPrompt, mode: ScoringMode) -> list[str]:
    """The target words as the scorer extracts them."""
    return lower_words(straight_quoted(prompt.text) if mode == "strict" else prompt.strings)


def word_similarity(word: str, read: Sequence[str], mode: ScoringMode) -> float:
    """NED of a target word and the most similar of the words read (at least one)."""
    if mode == "strict":
        (closest,) = difflib.get_close_matches(word, read, n=1, cutoff=0)
        return line_similarity(word, closest, mode)
    return max(line_similarity(word, other, mode) for other in read)


def score(prompt: BenchmarkPrompt, ocr: OCRResult, mode: ScoringMode) -> MetricTerms:
    """One image's words."""
    truth, read = target_words(prompt, mode), lower_words(ocr.words) or [""]
    found = sum(word in read for word in truth) if mode == "strict" else matches(truth, read)
    similarity = sum(word_similarity(word, read, mode) for word in truth)
    return {"word_accuracy": MetricTerm(float(found), len(truth)), "ned": MetricTerm(similarity, len(truth))}


CVTG = Protocol(
    name="cvtg",
    title="CVTG-2K",
    metrics=("word_accuracy", "ned"),
    ranked_by="ned",
    native_engine="PaddleOCR (PP-OCRv3 detection, PP-OCRv4 English recognition)",
    score=score,
    combine=no_derived_metrics,
    quirks="one read word satisfies any number of target words; no precision; apostrophes cut the truth",
)
