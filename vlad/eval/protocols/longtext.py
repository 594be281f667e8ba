"""LongText-Bench (X-Omni, arXiv 2507.22058): how much of a long text an image shows, in any order.

    text accuracy  characters (Chinese) or lower-cased words (English) shared by truth and OCR result as multisets, over
                   those of the truth; the sums run over all images (micro average)

Strict computes as the published scorer does: only the letters a-z, digits, common Chinese characters and some accented
letters of French are kept, all else is deleted (it's becomes its, and Straße Strae).
Corrected: letters, digits and marks of all scripts are kept, in Unicode's composed form; apostrophes are deleted, and
all other characters separate words (well-known is two words).
"""

from __future__ import annotations

import re
import unicodedata

from vlad.eval.protocols.protocol import (
    BenchmarkPrompt,
    MetricTerm,
    MetricTerms,
    OCRResult,
    Protocol,
    ScoringMode,
    matches,
    no_derived_metrics,
)
from vlad.layout.reading_order import reading_order

_CHINESE = re.compile("[\u4e00-\u9fa5]")
_DELETED_IN_STRICT = re.compile("[^\u4e00-\u9fa5a-zA-Z0-9\\sàâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ]")
_APOSTROPHES = "'’"


def units(text: str, chinese: bool, mode: ScoringMode) -> list[str]:
    """The units that are counted: words, or characters with `chinese`."""
    if mode == "strict":
        kept = _DELETED_IN_STRICT.sub("", text)
    else:
        text = unicodedata.normalize("NFC", text)
        kept = "".join(_corrected_character(character) for character in text)
    return [character for character in kept if not character.isspace()] if chinese else kept.lower().split()


def _corrected_character(character: str) -> str:
    if unicodedata.category(character)[0] in "LNM":
        return character
    return "" if character in _APOSTROPHES else " "


def score(prompt: BenchmarkPrompt, ocr: OCRResult, mode: ScoringMode) -> MetricTerms:
    """One image's share of the text."""
    text = " ".join(prompt.strings)
    chinese = _CHINESE.search(text) is not None
    lines = ocr.lines if mode == "strict" else reading_order(ocr.lines)
    truth = units(text, chinese, mode)
    return {
        "text_accuracy": MetricTerm(
            matches(truth, units(" ".join(line.text for line in lines), chinese, mode)), len(truth)
        )
    }


LONGTEXT = Protocol(
    name="longtext",
    title="LongText-Bench",
    metrics=("text_accuracy",),
    ranked_by="text_accuracy",
    native_engine="Qwen2.5-VL-7B-Instruct",
    score=score,
    combine=no_derived_metrics,
    quirks="only a-z, digits, Chinese and some French letters are kept; extra words cost nothing",
)
