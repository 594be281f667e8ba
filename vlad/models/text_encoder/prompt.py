"""Prompt parsing: quoted strings and object phrases, each with its character span.

A quoted string is a text that the image has to spell. These pairs of quotation marks are known:
"" '' “” „“ ”” ‘’ ‚‘ «» »« »» ‹› ›‹ 「」 『』 ＂＂.
A straight or curly apostrophe inside a word (don't, it’s, the dogs' bowl) is not a mark. Scripts that write words
without spaces, or endings straight after a quotation (写着'你好'的, '안녕'이라고), have no apostrophes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from vlad.types import Prompt, Span
from vlad.utils.errors import UserError

CLOSING_MARKS = {
    '"': '"',
    "'": "'",
    "“": "”“",
    "„": "“”",
    "”": "”",
    "‘": "’",
    "‚": "‘’",
    "«": "»",
    "»": "«»",
    "‹": "›",
    "›": "‹›",
    "「": "」",
    "『": "』",
    "＂": "＂",
}
APOSTROPHES = "'’"
# These open in some languages (»so«, ”so”, 'so') and close in others: directly after a letter they close.
_EITHER = "'”»›"
# Thai and Lao, Burmese, Hangul, Khmer, and from the CJK radicals on: kana, Han and the wide forms.
_NO_APOSTROPHE = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\ua4cf\ua960-\ua97f\uac00-\ud7ff"
    "\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
# A phrase ends where one of these begins: verbs of writing, conjunctions, prepositions, relative pronouns.
PHRASE_BREAKS = frozenset(
    """above across against and are around as at be behind being below beneath beside between but by down during for
    from has have having holding in inside into is its near nor of off on onto or out over painted printed reading
    reads said saying says showing shows so spelling spells than that then through to toward under upon was
    wearing were when where which while who with within without word words writes written""".split()
)
_WORD = re.compile(r"\w+(?:[-'’]\w+)*", re.UNICODE)


def _joins(character: str) -> bool:
    """Whether the character belongs to the letter before it: combining marks, vowel signs, joiners."""
    return unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf")


def _takes_apostrophe(character: str) -> bool:
    """Whether an apostrophe can follow or precede it: letters and digits of scripts that have apostrophes."""
    return (character.isalnum() or _joins(character)) and not _NO_APOSTROPHE.match(character)


def _is_apostrophe(text: str, index: int) -> bool:
    """Whether the mark at `index` is between two letters: don't, l’eau."""
    if text[index] not in APOSTROPHES:
        return False
    before = text[index - 1] if index > 0 else " "
    after = text[index + 1] if index + 1 < len(text) else " "
    return _takes_apostrophe(before) and _takes_apostrophe(after)


def _opens(text: str, index: int) -> bool:
    """Whether the mark at `index` can open a quotation: a closing quote never follows a word's own letters."""
    if text[index] not in CLOSING_MARKS or _is_apostrophe(text, index):
        return False
    # "the dogs' bowl", 6” of wood: directly after a letter such a mark closes, even if nothing was opened.
    return text[index] not in _EITHER or index == 0 or not _takes_apostrophe(text[index - 1])


def _closing_index(text: str, start: int, closing: str) -> int | None:
    """Where the quotation whose content starts at `start` ends: the first of `closing` that is no apostrophe."""
    for index in range(start, len(text)):
        if text[index] in closing and not _is_apostrophe(text, index):
            return index
    return None


def find_quotes(text: str, strict: bool = True) -> tuple[Span, ...]:
    """The quoted strings of a prompt, outermost marks first, without empty ones.

    With `strict`, a mark that is never closed and marks around nothing raise UserError (with their place); otherwise,
    for captions from the web, such a mark is a plain character.
    """
    quotes: list[Span] = []
    index = 0
    while index < len(text):
        if not _opens(text, index):
            index += 1
            continue
        end = _closing_index(text, index + 1, CLOSING_MARKS[text[index]])
        if end is None:
            if strict:
                raise UserError(
                    f"The quotation mark {text[index]} at character {index + 1} of the prompt {text!r} is never"
                    f" closed; add {CLOSING_MARKS[text[index]][0]} after the words to spell, or remove it."
                )
            index += 1
            continue
        content = text[index + 1 : end]
        if strict and not content.strip():
            raise UserError(
                f"Nothing is between the quotation marks at character {index + 1} of the prompt {text!r}; write the"
                " words to spell there, or take the marks out."
            )
        if content.strip():
            start = index + 1 + len(content) - len(content.lstrip())
            quotes.append(Span(content.strip(), start, start + len(content.strip())))
        index = end + 1
    return tuple(quotes)


def find_phrases(text: str, quotes: tuple[Span, ...]) -> tuple[Span, ...]:
    """Object phrases by a simple chunker: the longest runs of words between breaks, outside the quotes.

    A break is punctuation, a quoted string or one of PHRASE_BREAKS; a lone article is no phrase. "a blue sign
    that says "HOUSE" in white letters" gives "a blue sign" and "white letters".
    """
    phrases: list[Span] = []
    # Each stretch between the quotes alone: no word extends over a quotation mark.
    edges = [0, *(edge for quote in quotes for edge in (quote.start, quote.end)), len(text)]
    words = [
        match for start, end in zip(edges[::2], edges[1::2], strict=True) for match in _WORD.finditer(text, start, end)
    ]
    run: list[re.Match[str]] = []

    def close_run() -> None:
        if any(match.group().lower() not in ("a", "an", "the") for match in run):
            start, end = run[0].start(), run[-1].end()
            while end < len(text) and _joins(text[end]):
                end += 1
            phrases.append(Span(text[start:end], start, end))
        run.clear()

    for match in words:
        if run and not all(c.isspace() or _joins(c) for c in text[run[-1].end() : match.start()]):
            close_run()
        if match.group().lower() in PHRASE_BREAKS:
            close_run()
        else:
            run.append(match)
    close_run()
    return tuple(phrases)


def find_objects(text: str, objects: Sequence[str]) -> tuple[Span | None, ...]:
    """The span of each object's phrase in the text: whole words outside of quotes, case-insensitive, longest first.

    One entry per object, in the order given, none overlapping; None if the text does not name it (again).
    """
    found: list[Span | None] = [None] * len(objects)
    taken = list(find_quotes(text, strict=False))
    for index in sorted(range(len(objects)), key=lambda index: (-len(objects[index].strip()), index)):
        words = objects[index].split()
        if not words:
            continue
        pattern = r"(?<!\w)" * (words[0][0].isalnum() and not _NO_APOSTROPHE.match(words[0][0]))
        pattern += r"\s+".join(re.escape(word) for word in words)
        pattern += r"(?!\w)" * (words[-1][-1].isalnum() and not _NO_APOSTROPHE.match(words[-1][-1]))
        for match in re.finditer(pattern, text, re.IGNORECASE):
            span = Span(match.group(), *match.span())
            if all(span.end <= other.start or span.start >= other.end for other in taken):
                found[index] = span
                taken.append(span)
                break
    return tuple(found)


def nested_marks(prompt: Prompt) -> tuple[Span, ...]:
    """The quoted strings that contain quotation marks, which will be spelled like letters."""
    return tuple(quote for quote in prompt.quotes if find_quotes(quote.text, strict=False))


def parse_prompt(text: str, strict: bool = True, objects: Sequence[str] = ()) -> Prompt:
    """Parses a prompt. Its phrases are the `objects` that it names, and those of the chunker that overlap none.

    Raises UserError for an empty prompt and, with `strict`, for a quotation mark that is never closed or holds nothing.
    """
    if not text.strip():
        raise UserError("The prompt is empty; describe the image, with the words to spell in quotation marks.")
    quotes = find_quotes(text, strict)
    named = [span for span in find_objects(text, objects) if span is not None]
    others = [
        phrase
        for phrase in find_phrases(text, quotes)
        if all(phrase.end <= span.start or phrase.start >= span.end for span in named)
    ]
    return Prompt(text, tuple(sorted([*named, *others], key=lambda span: span.start)), quotes)


def plain_prompt(strings: Sequence[str]) -> str:
    """The prompt of an edit without a prompt, of the strings alone: a picture that says "A" and "B"."""
    if not any(text.strip() for text in strings):
        return "a picture without text"
    return f"a picture that says {' and '.join(quoted(text) for text in strings if text.strip())}"


def quoted(text: str) -> str:
    """The text in quotation marks that it does not contain; if it contains all, its straight ones are replaced."""
    for opening in ('"', "“", "«", "「"):
        if opening not in text and not set(CLOSING_MARKS[opening]) & set(text):
            return f"{opening}{text}{CLOSING_MARKS[opening][0]}"
    return f'"{text.replace(chr(34), chr(39))}"'
