"""Prompt parsing: quoted strings (`quotations.py`) and object phrases, each with its character span."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from vlad.models.text_encoder.quotations import CLOSING_MARKS, NO_APOSTROPHE, joins_letter, read_quotations
from vlad.types import Prompt, Span
from vlad.utils.errors import UserError

# A phrase ends where one of these begins: verbs of writing, conjunctions, prepositions, relative pronouns.
PHRASE_BREAKS = frozenset(
    """above across against and are around as at be behind being below beneath beside between but by down during for
    from has have having holding in inside into is its near nor of off on onto or out over painted printed reading
    reads said saying says showing shows so spelling spells than that then through to toward under upon was
    wearing were when where which while who with within without word words writes written""".split()
)
LINE_BREAKS = re.compile(r"(?:\\n|[\r\n\u2028\u2029])+")  # in a quoted string; also typed as \n
_WORD = re.compile(r"\w+(?:[-'’]\w+)*", re.UNICODE)


def find_quotes(text: str, strict: bool = True) -> tuple[Span, ...]:
    """The quoted strings of a prompt (`quotations.py`), outermost marks first, without empty ones."""
    return read_quotations(text, strict).spans


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
            while end < len(text) and joins_letter(text[end]):
                end += 1
            phrases.append(Span(text[start:end], start, end))
        run.clear()

    for match in words:
        if run and not all(c.isspace() or joins_letter(c) for c in text[run[-1].end() : match.start()]):
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
        pattern = r"(?<!\w)" * (words[0][0].isalnum() and not NO_APOSTROPHE.match(words[0][0]))
        pattern += r"\s+".join(re.escape(word) for word in words)
        pattern += r"(?!\w)" * (words[-1][-1].isalnum() and not NO_APOSTROPHE.match(words[-1][-1]))
        for match in re.finditer(pattern, text, re.IGNORECASE):
            span = Span(match.group(), *match.span())
            if all(span.end <= other.start or span.start >= other.end for other in taken):
                found[index] = span
                taken.append(span)
                break
    return tuple(found)


def notes_on_quotations(prompt: Prompt) -> tuple[str, ...]:
    """A sentence for each quotation that could be read in two ways: what it was taken for, how to write the other."""
    nested = [quote.text for quote in prompt.quotes if find_quotes(quote.text, strict=False)]
    return (
        *read_quotations(prompt.text).notes,
        *(
            f"The quotation marks inside {text!r} are spelled like its letters; leave one pair out otherwise."
            for text in nested
        ),
    )


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


def wrap_strings(prompt: Prompt, max_characters: int) -> Prompt:
    """The prompt with a quoted string a line of text: at newlines (also typed as \\n), and at spaces where a string is
    longer than a line holds; a longer word is cut. Each line is one of `quotes`, with its place in the text."""
    lines = [line for quote in prompt.quotes for line in _lines_of(quote, max_characters)]
    return prompt if tuple(lines) == prompt.quotes else replace(prompt, quotes=tuple(lines))


def _lines_of(quote: Span, max_characters: int) -> list[Span]:
    lines: list[Span] = []
    breaks = LINE_BREAKS.finditer(quote.text)
    edges = [0, *(edge for match in breaks for edge in match.span()), len(quote.text)]
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        bounds: list[tuple[int, int]] = []  # of the lines between two breaks, in the quotation
        for word in re.compile(r"\S+").finditer(quote.text, first, last):
            start, end = word.span()
            if bounds and end - bounds[-1][0] <= max_characters:
                bounds[-1] = (bounds[-1][0], end)
            else:
                pieces = math.ceil((end - start) / max_characters)  # of one length, rather than a rest of one letter
                size = math.ceil((end - start) / pieces)
                bounds += [(at, min(at + size, end)) for at in range(start, end, size)]
        lines += [Span(quote.text[start:end], quote.start + start, quote.start + end) for start, end in bounds]
    return lines


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
