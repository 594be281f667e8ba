"""SimpleBench and CreativeBench (GlyphControl, arXiv 2305.18259): one word an image, among the strings found.

    accuracy            share of words that are one of the strings found, letter case counting
    accuracy_any_case   the same with letter case ignored
    ld                  the fewest edits (Levenshtein) between the word and a string found, the mean over words

Strict computes as the published scorer does: a string found is a whole detection, so a word in a line of several does
not count; images in which nothing is found are left out of `ld`, which favours a model that writes nothing.
Corrected: the words of a detection count as strings found, too, and where nothing is found `ld` is the word's length.
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


def found_strings(ocr: OCRResult, mode: ScoringMode) -> list[str]:
    """The strings among which the target words are searched."""
    detections = [line.text for line in ocr.lines]
    return detections if mode == "strict" else [*detections, *ocr.words]


def score(prompt: BenchmarkPrompt, ocr: OCRResult, mode: ScoringMode) -> MetricTerms:
    """One image's words, mostly one."""
    found = found_strings(ocr, mode)
    lowered = {text.lower() for text in found}
    count = len(prompt.strings)
    terms = {
        "accuracy": MetricTerm(sum(text in found for text in prompt.strings), count),
        "accuracy_any_case": MetricTerm(sum(text.lower() in lowered for text in prompt.strings), count),
    }
    if found:
        edits = sum(min(Levenshtein.distance(text, other) for other in found) for text in prompt.strings)
        terms["ld"] = MetricTerm(edits, count)
    else:
        terms["ld"] = MetricTerm(0, 0) if mode == "strict" else MetricTerm(sum(map(len, prompt.strings)), count)
    return terms


GLYPHCONTROL = Protocol(
    name="glyphcontrol",
    title="GlyphControl SimpleBench/CreativeBench",
    metrics=("accuracy", "accuracy_any_case", "ld"),
    ranked_by="accuracy_any_case",
    native_engine="EasyOCR (English)",
    score=score,
    combine=no_derived_metrics,
    quirks="a word counts only as a detection of its own; images with none are left out of LD",
    lower_is_better=frozenset({"ld"}),
)
