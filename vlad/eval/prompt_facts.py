"""Facts of a text (objects, colours, counts, relations), and those of a prompt that a description confirms.

Facts are bound: "a blue cup and a red plate" does not confirm "a red cup and a blue plate", though their bags of words
are equal. The light chunker of `models/text_encoder/prompt.py` finds them; what it misses does not count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from vlad.data.signs import PALETTE
from vlad.eval.protocols.protocol import MetricTerm, MetricTerms
from vlad.models.text_encoder.prompt import find_phrases, find_quotes

COLOURS = frozenset(
    (*PALETTE, "violet", "brown", "pink", "gray", "grey", "gold", "golden", "silver", "beige", "turquoise")
)
SAME_COLOUR = {"grey": "gray", "golden": "gold", "violet": "purple"}
NUMBERS = {
    word: number
    for number, words in enumerate(
        ("one single a an", "two pair", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), start=1
    )
    for word in words.split()
}
COUNTED = {word: number for word, number in NUMBERS.items() if word not in ("a", "an")}
# Synonyms; the first of a group is the normal form.
SYNONYMS = {
    word: group.split()[0]
    for group in (
        "sign signboard signpost board placard",
        "poster banner flyer",
        "card postcard",
        "label tag sticker",
        "cup mug",
        "shop store",
        "car automobile",
        "picture image photo photograph",
        "letter lettering text",
        "sofa couch",
        "bike bicycle",
        "circle disc disk",
        "ring hoop",
        "diamond rhombus",
    )
    for word in group.split()
}
# Relations with their inverse: A above B is B below A.
INVERSE = {"above": "below", "left": "right", "behind": "before", "in": "around", "beside": "beside", "on": "under"}
_RELATIONS = (
    ("left", r"(?:to |on )?the left (?:side )?of|left of"),
    ("right", r"(?:to |on )?the right (?:side )?of|right of"),
    ("before", r"in front of|before"),
    ("behind", r"behind"),
    ("above", r"above|over"),
    ("below", r"below|beneath|underneath"),
    ("under", r"under"),
    ("beside", r"beside|next to|near|by"),
    ("on", r"on top of|on|upon"),
    ("in", r"inside|in|within"),
)
_BETWEEN = re.compile("|".join(rf"(?P<{name}>\b(?:{pattern})\b)" for name, pattern in _RELATIONS), re.IGNORECASE)
# Words of position, which name no object.
PLACES = frozenset("left right top bottom middle centre center side front back next corner".split())
_WORD = re.compile(r"\w+")
KINDS = ("strings", "objects", "colours", "counts", "relations")


@dataclass(frozen=True)
class Facts:
    """The facts of a text by kind; objects in their normal form."""

    objects: frozenset[str]
    colours: frozenset[tuple[str, str]]
    counts: frozenset[tuple[int, str]]
    relations: frozenset[tuple[str, str, str]]


def facts_of(text: str) -> Facts:
    """The facts of a prompt or a description; quotations contain none."""
    quotes = find_quotes(text, strict=False)
    phrases = find_phrases(text, quotes)
    objects, colours, counts, relations = set(), set(), set(), set()
    heads: list[tuple[str, int, int]] = []
    for phrase in phrases:
        matches = list(_WORD.finditer(text, phrase.start, phrase.end))
        words = [match.group().lower() for match in matches]
        named = [match for match, word in zip(matches, words, strict=True) if _names(word)]
        if not named:
            continue
        head = normal(named[-1].group().lower())
        heads.append((head, phrase.start, named[-1].end()))
        objects.add(head)
        colours |= {(SAME_COLOUR.get(word, word), head) for word in words if word in COLOURS}
        numbers = (int(word) if word.isdecimal() else COUNTED.get(word) for word in words)
        counts |= {(number, head) for number in numbers if number is not None}
    for (one, _, end), (other, start, _) in pairwise(heads):
        found = _BETWEEN.search(text, end, start)
        # A sentence's end or a quotation between them: no relation.
        parted = re.search(r"[.;!?]", text[end:start]) or any(end <= quote.start < start for quote in quotes)
        if found is not None and found.lastgroup is not None and not parted:
            relations.add(_canonical(one, found.lastgroup, other))
    return Facts(frozenset(objects), frozenset(colours), frozenset(counts), frozenset(relations))


def _names(word: str) -> bool:
    """Whether a word of a phrase names its object."""
    return not (word in COLOURS or word in NUMBERS or word in PLACES or word == "the" or word.isdecimal())


def normal(word: str) -> str:
    """An object's normal form: singular, synonyms replaced."""
    if word in SYNONYMS:
        return SYNONYMS[word]
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            word = word.removesuffix(ending) + instead
            break
    else:
        if word.endswith("s") and not word.endswith("ss") and len(word) > 3:
            word = word[:-1]
    return SYNONYMS.get(word, word)


def _canonical(one: str, relation: str, other: str) -> tuple[str, str, str]:
    """A relation in one direction, whichever was stated."""
    back = {value: key for key, value in INVERSE.items() if key != value}
    if relation in back:
        return other, back[relation], one
    if INVERSE[relation] == relation and other < one:
        return other, relation, one
    return one, relation, other


def confirmed(prompt: str, strings: Sequence[str], description: str) -> MetricTerms:
    """How many of the prompt's facts the description confirms; a kind without facts has no term.

    A string is confirmed where its letters and digits occur in the description as whole words, in any case.
    """
    stated, described = facts_of(prompt), facts_of(description)
    terms: MetricTerms = {}
    if strings:
        words = f" {_plain(description)} "
        terms["strings"] = MetricTerm(sum(f" {_plain(string)} " in words for string in strings), len(strings))
    for kind in KINDS[1:]:
        facts = getattr(stated, kind)
        if facts:
            terms[kind] = MetricTerm(len(facts & getattr(described, kind)), len(facts))
    return terms


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
