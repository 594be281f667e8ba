"""Hard negatives (NegCLIP) and rewordings of captions for the contrastive loss, made by small swaps of words.

    a red cube on a blue ball   colours    a blue cube on a red ball
                                nouns      a red ball on a blue cube
    a sign at the top           positions  a sign at the bottom
    a large sign                reworded   a big sign

An encoder that reads a caption as a bag of words cannot tell the first two from their caption: NegCLIP (Yuksekgonul
et al., ICLR 2023) adds them to the loss as hard negatives. Rewordings are positives that bring synonyms together
(SemCLIP's idea, Ngan et al., arXiv 2511.16527, there with whole paraphrases).

No tagger and no language model: the tables are English, and a caption with nothing to swap gives None. Quoted strings,
which an image spells, never change. A swap can be bad English ("a white letters"), by which an encoder can tell it as
well: a known weakness of swapped captions (SugarCrepe, Hsieh et al., NeurIPS 2023).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlad.models.text_encoder.prompt import parse_prompt
from vlad.models.text_encoder.quotations import CLOSING_MARKS
from vlad.types import Prompt, Span
from vlad.utils.distributed import derived_seed

# Words of one row are synonyms: rewordings exchange them, hard negatives do not.
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
# Only directly before a quoted string: a man reading is not a man saying.
QUOTING_SYNONYMS: tuple[tuple[str, ...], ...] = (("says", "reads"), ("saying", "reading"))
# No gold or silver: as negatives of yellow and grey they would be ambiguous.
COLOURS = tuple("black white red green blue yellow orange purple violet pink brown grey gray".split())
# A position is replaced by another of its row. With their articles: a man who left is not on the left.
POSITIONS: tuple[tuple[str, ...], ...] = (
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
# Asymmetric relations between two nouns; "beside" or "and" would hold the other way round as well.
ASYMMETRIC = frozenset(
    """above across against atop behind below beneath carrying covering eating holding in inside into off on onto
    outside over pulling riding through toward towards under wearing without""".split()
)
_ARTICLES = ("a", "an", "the")
_WORD = re.compile(r"\w+(?:[-'’]\w+)*")


@dataclass(frozen=True)
class _Edit:
    """A span of a caption and its replacement."""

    start: int
    end: int
    text: str


def swap_colours(caption: str, rng: random.Random) -> str | None:
    """Exchanges two colours of different things, or else replaces one colour; None if the caption names no colour."""
    prompt = _parsed(caption)
    colours = [word for word in _words(prompt) if word.text.lower() in COLOURS]
    if not colours:
        return None
    pairs = [(a, b) for i, a in enumerate(colours) for b in colours[i + 1 :] if _exchange_matters(prompt, a, b)]
    if pairs:
        first, second = rng.choice(pairs)
        return _edited(prompt, [_replaced(first, second.text.lower()), _replaced(second, first.text.lower())])
    named = {_meaning(colour.text) for colour in colours}
    word = rng.choice(colours)
    other = rng.choice([colour for colour in COLOURS if _meaning(colour) not in named])
    return _edited(prompt, [_replaced(word, other)])


def swap_nouns(caption: str, rng: random.Random) -> str | None:
    """Exchanges the nouns of two neighbouring phrases, without their attributes.

    If neither has attributes ("a cat on a mat"), only across an asymmetric relation such as "on". None if no exchange
    changes the meaning.
    """
    prompt = _parsed(caption)
    pairs = []
    for first, second in zip(prompt.phrases, prompt.phrases[1:], strict=False):
        *attributes, noun = _words_of(prompt, first)
        *other_attributes, other_noun = _words_of(prompt, second)
        between = {word.text.lower() for word in _words(prompt) if first.end <= word.start and word.end <= second.start}
        differing = _meanings(attributes) != _meanings(other_attributes)
        both = bool(_meanings(attributes)) and bool(_meanings(other_attributes))
        if _meaning(noun.text) == _meaning(other_noun.text) or not _is_noun(noun) or not _is_noun(other_noun):
            continue
        if (differing and both) or between & ASYMMETRIC:
            pairs.append((noun, other_noun))
    if not pairs:
        return None
    first, second = rng.choice(pairs)
    return _edited(prompt, [_replaced(first, second.text), _replaced(second, first.text)])


def swap_positions(caption: str, rng: random.Random) -> str | None:
    """Replaces a position ("at the top", "in the middle"; "above", "below"); None if the caption names none."""
    prompt = _parsed(caption)
    found = []
    taken: list[Span] = []
    for row in POSITIONS:  # longer names come first, so that "at the top" is not taken for "the top"
        for span in _occurrences(prompt, row):
            if not any(span.start < other.end and other.start < span.end for other in taken):
                taken.append(span)
                found.append((span, [name for name in row if _position(name) != _position(span.text)]))
    if not found:
        return None
    span, others = rng.choice(found)
    return _edited(prompt, [_replaced(span, rng.choice(others))])


def reword(caption: str, rng: random.Random) -> str | None:
    """Replaces one or more words by synonyms; None if the tables contain none of the caption's words."""
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


SWAPS: tuple[Callable[[str, random.Random], str | None], ...] = (swap_colours, swap_nouns, swap_positions)


@dataclass(frozen=True)
class CaptionVariants:
    """M variants of each of B captions: texts, B x M in the order of the captions; roles B M as in AugmentedTexts.

    Where there is no variant (role 0), the text is the caption itself.
    """

    texts: tuple[str, ...]
    roles: Tensor


def vary_captions(captions: Sequence[str], seed: int, hard_negatives: int, rewordings: int) -> CaptionVariants:
    """Up to `rewordings` rewordings and `hard_negatives` swapped captions for each caption, all different.

    They depend on the seed, the caption and its index in the batch only.
    """
    count = rewordings + hard_negatives
    texts: list[str] = []
    roles: list[list[int]] = []
    for row, caption in enumerate(captions):
        rng = random.Random(derived_seed(seed, row, caption))
        same = _distinct(caption, (reword,), rewordings, rng)
        other = _distinct(caption, SWAPS, hard_negatives, rng)
        texts += [text or caption for text in (*same, *other)]
        roles.append([int(text is not None) for text in same] + [-int(text is not None) for text in other])
    return CaptionVariants(tuple(texts), torch.tensor(roles, dtype=torch.long).reshape(len(captions), count))


def _distinct(
    caption: str, swaps: Sequence[Callable[[str, random.Random], str | None]], count: int, rng: random.Random
) -> list[str | None]:
    """`count` different results of the swaps in random order; None for those that could not be found."""
    found: list[str | None] = []
    for _ in range(3):  # a caption with few words soon repeats itself
        for swap in rng.sample(swaps, len(swaps)):
            text = swap(caption, rng) if len(found) < count else None
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
    """The occurrences of the names (of one or more words) outside the quotes, longest names first."""
    choices = "|".join(re.escape(name).replace(r"\ ", r"\s+") for name in sorted(names, key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w'’-])(?:{choices})(?![\w'’-])", re.IGNORECASE)
    return [
        Span(match.group(), match.start(), match.end())
        for start, end in _unquoted(prompt)
        for match in pattern.finditer(prompt.text, start, end)
    ]


def _meaning(word: str) -> str:
    """The first of the word's synonyms, or itself, in lower case."""
    word = word.lower()
    return next((words[0] for words in SYNONYMS if word in words), word)


def _position(name: str) -> str:
    return " ".join(_meaning(word) for word in name.split())


def _meanings(words: Sequence[Span]) -> tuple[str, ...]:
    return tuple(_meaning(word.text) for word in words if word.text.lower() not in _ARTICLES)


def _is_noun(word: Span) -> bool:
    """Whether a phrase's last word names a thing instead of a position, a colour or an article."""
    names = {part for row in POSITIONS for name in row for part in name.split()}
    return word.text.lower() not in {*names, *COLOURS, *_ARTICLES}


def _exchange_matters(prompt: Prompt, first: Span, second: Span) -> bool:
    """Whether exchanging two colours changes the meaning: they differ, and so do their nouns."""
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
    """Replaces the span by `text` in the span's letter case: lower, Capitalised or UPPER."""
    if len(span.text) > 1 and span.text.isupper():
        text = text.upper()
    elif span.text[0].isupper():
        text = text[0].upper() + text[1:]
    elif text[1:] == text[1:].lower():
        text = text[0].lower() + text[1:]
    return _Edit(span.start, span.end, text)


def _edited(prompt: Prompt, edits: Sequence[_Edit]) -> str | None:
    """The caption after the edits, with a or an corrected; None if it is the same or its quoted strings are not."""
    text = prompt.text
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        before = text[: edit.start]
        article = re.search(r"(?<![\w'’-])(an?)(\s+)$", before, re.IGNORECASE)
        if article and not _quoted(prompt, article.start()):
            vowel = edit.text[0].lower() in "aeiou"
            given = article.group(1)
            corrected = given[0] + (("N" if given.isupper() and edit.text.isupper() else "n") if vowel else "")
            before = before[: article.start()] + corrected + article.group(2)
        text = before + edit.text + text[edit.end :]
    unchanged = text == prompt.text or _parsed(text).strings != prompt.strings
    return None if unchanged else text


def _quoted(prompt: Prompt, index: int) -> bool:
    return any(quote.start <= index < quote.end for quote in prompt.quotes)
