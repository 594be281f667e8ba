"""SimpleBench and CreativeBench (GlyphControl, arXiv 2305.18259): one word an image, among the strings found.

    accuracy            share of words that are one of the strings found, letter case counting
    accuracy_any_case   the same with letter case ignored
    ld                  the fewest edits (Levenshtein) between the word and a string found, the mean over words

Strict keeps what the published scorer does: a string found is a whole detection, so a word in a line of several does
not count; images in which nothing is found are left out of `ld`, which flatters a model that writes nothing.
Corrected: the words of a detection count as strings found too, and nothing found costs the whole word.
"""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein

from vlad.eval.protocols.protocol import Mode, Protocol, Reading, Term, Terms, Wanted, as_they_are


def found_strings(reading: Reading, mode: Mode) -> list[str]:
    """What the wanted words are looked for among."""
    detections = [line.text for line in reading.lines]
    return detections if mode == "strict" else [*detections, *reading.words]


def score(wanted: Wanted, reading: Reading, mode: Mode) -> Terms:
    """One image's words, mostly one."""
    found = found_strings(reading, mode)
    lowered = {text.lower() for text in found}
    count = len(wanted.strings)
    terms = {
        "accuracy": Term(sum(text in found for text in wanted.strings), count),
        "accuracy_any_case": Term(sum(text.lower() in lowered for text in wanted.strings), count),
    }
    if found:
        edits = sum(min(Levenshtein.distance(text, other) for other in found) for text in wanted.strings)
        terms["ld"] = Term(edits, count)
    else:
        terms["ld"] = Term(0, 0) if mode == "strict" else Term(sum(map(len, wanted.strings)), count)
    return terms


GLYPHCONTROL = Protocol(
    name="glyphcontrol",
    title="GlyphControl SimpleBench/CreativeBench",
    metrics=("accuracy", "accuracy_any_case", "ld"),
    ranked_by="accuracy_any_case",
    native_engine="EasyOCR (English)",
    score=score,
    combine=as_they_are,
    quirks="a word counts only as a detection of its own; images with none are left out of LD",
    falling=frozenset({"ld"}),
)
