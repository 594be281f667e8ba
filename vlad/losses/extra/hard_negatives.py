"""Captions that say something else, or the same in other words, made from a caption by small swaps.

    a red cube on a blue ball   colours   a blue cube on a red ball
                                words     a red ball on a blue cube
    a sign at the top           places    a sign at the bottom
    a large sign                reworded  a big sign

An encoder that reads a caption as a bag of words cannot tell the first two from their caption: NegCLIP (Yuksekgonul
et al., ICLR 2023) puts them into the loss as hard negatives. Rewordings are the opposite, positives that make synonyms
stand together (SemCLIP's idea, Ngan et al., arXiv 2511.16527, there with whole paraphrases).

No tagger and no language model: the tables are English, and a caption with nothing to swap gives None. Quoted strings
are what an image spells: they are never touched. A swap can be bad English ("a white letters"): it is told apart by
that too, which is a known weakness of swapped captions (SugarCrepe, Hsieh et al., NeurIPS 2023).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlad.models.text_encoder.prompt import CLOSING_MARKS, parse_prompt
from vlad.types import Prompt, Span
from vlad.utils.distributed import derived_seed

SwapKind = Literal["colours", "words", "places"]
# Words of one set mean the same: no hard negative takes one for the other, and a rewording may.
SYNONYMS: tuple[tuple[str, ...], ...] = (
    ("big", "large"),
    ("small", "little"),
    ("grey", "gray"),
    ("purple", "violet"),
    ("middle", "centre", "center"),
    ("beneath", "below"),
    ("photo", "photograph"),
    ("picture", "image"),
    ("shop", "store"),
    ("road", "street"),
    ("sofa", "couch"),
    ("bike", "bicycle"),
    ("automobile", "car"),
)
# Only straight before a quoted string: a man reading is not a man saying.
QUOTING_SYNONYMS: tuple[tuple[str, ...], ...] = (("says", "reads"), ("saying", "reading"))
# No gold or silver: they would stand against yellow and grey.
COLOURS = tuple("black white red green blue yellow orange purple violet pink brown grey gray".split())
# A place is replaced by another of its row. With their articles: a man who left is not on the left.
PLACES: tuple[tuple[str, ...], ...] = (
    ("at the top", "in the middle", "in the centre", "in the center", "at the bottom"),
    ("on the left", "on the right"),
    ("the top", "the bottom"),
    ("the upper", "the lower"),
    ("the left", "the right"),
    ("left of", "right of"),
    ("above", "below", "beneath"),
    ("over", "under"),
    ("inside", "outside"),
    ("in front of", "behind"),
)
# Between two things these say which is which; "beside" or "and" would hold as well the other way round.
ONE_WAY = frozenset(
    """above across against atop behind below beneath carrying covering eating holding in inside into off on onto
    outside over pulling riding through toward towards under wearing without""".split()
)
_ARTICLES = ("a", "an", "the")
_WORD = re.compile(r"\w+(?:[-'’]\w+)*")


@dataclass(frozen=True)
class _Edit:
    """A stretch of a caption and what takes its place."""

    start: int
    end: int
    text: str


def swap_colours(caption: str, rng: random.Random) -> str | None:
    """Two colours of different things exchanged, else one colour replaced; None where no colour is named."""
    prompt = _parsed(caption)
    colours = [word for word in _words(prompt) if word.text.lower() in COLOURS]
    if not colours:
        return None
    pairs = [(a, b) for i, a in enumerate(colours) for b in colours[i + 1 :] if _exchange_tells(prompt, a, b)]
    if pairs:
        first, second = rng.choice(pairs)
        return _edited(prompt, [_replaced(first, second.text.lower()), _replaced(second, first.text.lower())])
    named = {_meaning(colour.text) for colour in colours}
    word = rng.choice(colours)
    other = rng.choice([colour for colour in COLOURS if _meaning(colour) not in named])
    return _edited(prompt, [_replaced(word, other)])


def swap_words(caption: str, rng: random.Random) -> str | None:
    """The things of two neighbouring phrases exchanged, each leaving its attributes behind.

    Where neither has attributes ("a cat on a mat"), only across a word such as "on" that tells which is which. None
    where no exchange changes what is said.
    """
    prompt = _parsed(caption)
    pairs = []
    for first, second in zip(prompt.phrases, prompt.phrases[1:], strict=False):
        *attributes, thing = _words_of(prompt, first)
        *other_attributes, other = _words_of(prompt, second)
        between = {word.text.lower() for word in _words(prompt) if first.end <= word.start and word.end <= second.start}
        differing = _meanings(attributes) != _meanings(other_attributes)
        both = bool(_meanings(attributes)) and bool(_meanings(other_attributes))
        if _meaning(thing.text) == _meaning(other.text) or not _is_thing(thing) or not _is_thing(other):
            continue
        if (differing and both) or between & ONE_WAY:
            pairs.append((thing, other))
    if not pairs:
        return None
    first, second = rng.choice(pairs)
    return _edited(prompt, [_replaced(first, second.text), _replaced(second, first.text)])


def swap_places(caption: str, rng: random.Random) -> str | None:
    """One place replaced by another ("at the top", "in the middle"; "above", "below"); None where none is named."""
    prompt = _parsed(caption)
    found = []
    taken: list[Span] = []
    for row in PLACES:  # longer names come first: "at the top" is not read as "the top"
        for span in _occurrences(prompt, row):
            if not any(span.start < other.end and other.start < span.end for other in taken):
                taken.append(span)
                found.append((span, [place for place in row if _place(place) != _place(span.text)]))
    if not found:
        return None
    span, others = rng.choice(found)
    return _edited(prompt, [_replaced(span, rng.choice(others))])


def reword(caption: str, rng: random.Random) -> str | None:
    """One or more words replaced by synonyms; None where the tables know none of its words."""
    prompt = _parsed(caption)
    found = [(span, words) for words in SYNONYMS for span in _occurrences(prompt, words)]
    for words in QUOTING_SYNONYMS:
        found += [(span, words) for span in _occurrences(prompt, words) if _before_quote(prompt, span)]
    if not found:
        return None
    chosen = rng.sample(found, rng.randint(1, len(found)))
    edits = [
        _replaced(span, rng.choice([word for word in words if word != span.text.lower()])) for span, words in chosen
    ]
    return _edited(prompt, edits)


SWAPS: dict[SwapKind, Callable[[str, random.Random], str | None]] = {
    "colours": swap_colours,
    "words": swap_words,
    "places": swap_places,
}


@dataclass(frozen=True)
class CaptionVariants:
    """M further captions for each of B: texts, B x M in the order of the captions; roles B M as in AugmentedTexts.

    Where there is none (role 0) the text is the caption itself.
    """

    texts: tuple[str, ...]
    roles: Tensor


def vary_captions(captions: Sequence[str], seed: int, hard_negatives: int, rewordings: int) -> CaptionVariants:
    """Up to `rewordings` rewordings and `hard_negatives` swapped captions for each caption, all different.

    A function of the seed, the caption and its place in the batch alone.
    """
    count = rewordings + hard_negatives
    texts: list[str] = []
    roles: list[list[int]] = []
    for row, caption in enumerate(captions):
        rng = random.Random(derived_seed(seed, row, caption))
        same = _distinct(caption, [reword], rewordings, rng)
        other = _distinct(caption, list(SWAPS.values()), hard_negatives, rng)
        texts += [text or caption for text in (*same, *other)]
        roles.append([int(text is not None) for text in same] + [-int(text is not None) for text in other])
    return CaptionVariants(tuple(texts), torch.tensor(roles, dtype=torch.long).reshape(len(captions), count))


def _distinct(
    caption: str, ways: list[Callable[[str, random.Random], str | None]], count: int, rng: random.Random
) -> list[str | None]:
    """`count` different outcomes of the ways tried in turn, None for those that were not found."""
    found: list[str | None] = []
    for _ in range(3):  # a caption with few words soon repeats itself
        for way in rng.sample(ways, len(ways)):
            text = way(caption, rng) if len(found) < count else None
            if text is not None and text not in found:
                found.append(text)
    return found + [None] * (count - len(found))


# --- words of a prompt ---------------------------------------------------------------------------------------


def _parsed(caption: str) -> Prompt:
    return parse_prompt(caption, strict=False)


def _words(prompt: Prompt) -> list[Span]:
    """The words outside the quotes."""
    return [
        Span(match.group(), match.start(), match.end())
        for start, end in _unquoted(prompt)
        for match in _WORD.finditer(prompt.text, start, end)
    ]


def _unquoted(prompt: Prompt) -> Iterator[tuple[int, int]]:
    edges = [0, *(edge for quote in prompt.quotes for edge in (quote.start, quote.end)), len(prompt.text)]
    yield from zip(edges[::2], edges[1::2], strict=True)


def _words_of(prompt: Prompt, phrase: Span) -> list[Span]:
    return [word for word in _words(prompt) if phrase.start <= word.start and word.end <= phrase.end]


def _occurrences(prompt: Prompt, names: Sequence[str]) -> list[Span]:
    """Where one of the names (of one or more words) stands outside the quotes, longest names first."""
    choices = "|".join(re.escape(name).replace(r"\ ", r"\s+") for name in sorted(names, key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w'’-])(?:{choices})(?![\w'’-])", re.IGNORECASE)
    return [
        Span(match.group(), match.start(), match.end())
        for start, end in _unquoted(prompt)
        for match in pattern.finditer(prompt.text, start, end)
    ]


def _meaning(word: str) -> str:
    """The word, or the first of its synonyms, in small letters."""
    word = word.lower()
    return next((words[0] for words in SYNONYMS if word in words), word)


def _place(name: str) -> str:
    return " ".join(_meaning(word) for word in name.split())


def _meanings(words: Sequence[Span]) -> tuple[str, ...]:
    return tuple(_meaning(word.text) for word in words if word.text.lower() not in _ARTICLES)


def _is_thing(word: Span) -> bool:
    """Whether a phrase's last word names a thing: not a place, a colour or an article."""
    names = {part for row in PLACES for name in row for part in name.split()}
    return word.text.lower() not in {*names, *COLOURS, *_ARTICLES}


def _exchange_tells(prompt: Prompt, first: Span, second: Span) -> bool:
    """Whether exchanging two colours changes what is said: they differ, and so do the things that they belong to."""
    if _meaning(first.text) == _meaning(second.text):
        return False
    rests = []
    for colour in (first, second):
        phrase = next((p for p in prompt.phrases if p.start <= colour.start and colour.end <= p.end), None)
        words = [word for word in _words_of(prompt, phrase) if word != colour] if phrase else []
        rests.append(_meanings(words))
    return rests[0] != rests[1] and all(rests)


def _before_quote(prompt: Prompt, span: Span) -> bool:
    between = [prompt.text[span.end : quote.start] for quote in prompt.quotes if quote.start > span.end]
    return any(gap.strip() in CLOSING_MARKS and gap.strip() for gap in between)


# --- editing -------------------------------------------------------------------------------------------------


def _replaced(span: Span, text: str) -> _Edit:
    """The span as `text`, in small, Capital or ALL CAPITAL letters as it stood there itself."""
    if len(span.text) > 1 and span.text.isupper():
        text = text.upper()
    elif span.text[0].isupper():
        text = text[0].upper() + text[1:]
    elif text[1:] == text[1:].lower():
        text = text[0].lower() + text[1:]
    return _Edit(span.start, span.end, text)


def _edited(prompt: Prompt, edits: Sequence[_Edit]) -> str | None:
    """The caption with the edits and its articles put right; None where that would change what it quotes."""
    text = prompt.text
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        before = text[: edit.start]
        article = re.search(r"(?<![\w'’-])(an?)(\s+)$", before, re.IGNORECASE)
        if article and not _quoted(prompt, article.start()):
            vowel = edit.text[0].lower() in "aeiou"
            given = article.group(1)
            right = given[0] + (("N" if given.isupper() and edit.text.isupper() else "n") if vowel else "")
            before = before[: article.start()] + right + article.group(2)
        text = before + edit.text + text[edit.end :]
    unchanged = text == prompt.text or _parsed(text).strings != prompt.strings
    return None if unchanged else text


def _quoted(prompt: Prompt, index: int) -> bool:
    return any(quote.start <= index < quote.end for quote in prompt.quotes)
