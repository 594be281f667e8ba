"""The prompt of a canvas: its quoted strings and text colour follow the canvas's lines."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlad.models.text_encoder.prompt import parse_prompt, plain_prompt, quoted, wrap_strings
from vlad.models.text_encoder.quotations import read_quotations
from vlad.types import Layout

_COLOUR = re.compile(r"\bin (\w+) letters\b")


def prompt_of_canvas(prompt: str, layout: Layout, max_characters: int) -> str:
    """The prompt with the lines' texts as its quoted strings, and the first line's colour as that of its letters.

    Strings that a line still has stay; others are replaced by the texts of new lines, in order; surplus strings are
    removed, surplus texts added behind the last one. A prompt whose strings, in lines of at most `max_characters`, are
    those of the canvas stays. Raises UserError for a quotation mark that is never closed.
    """
    if not prompt.strip():
        prompt = plain_prompt([line.text for line in layout.lines])
    texts = [line.text.strip() for line in layout.lines]
    if wrap_strings(parse_prompt(prompt), max_characters).strings != tuple(texts):
        prompt = _with_strings(prompt, texts)
    return _with_colour(prompt, layout)


def _with_strings(prompt: str, texts: Sequence[str]) -> str:
    found = read_quotations(prompt)
    quotes, spans = found.spans, found.with_marks
    left = list(texts)
    wanted: list[str | None] = []
    for quote in quotes:
        if quote.text in left:
            left.remove(quote.text)
            wanted.append(quote.text)
        else:
            wanted.append(None)
    wanted = [left.pop(0) if text is None and left else text for text in wanted]
    result, added = prompt, "".join(f" and {quoted(text)}" for text in left)
    # From the end, so that earlier positions stay valid.
    for number in reversed(range(len(quotes))):
        (start, end), text = spans[number], wanted[number]
        if text is not None:
            string = prompt[start:end] if text == quotes[number].text else quoted(text)
            result = result[:start] + string + (added if number == len(quotes) - 1 else "") + result[end:]
        elif number < len(quotes) - 1 and any(later is not None for later in wanted[number + 1 :]):
            result = result[:start] + result[spans[number + 1][0] :]  # with the "and" behind it
        else:
            before = re.sub(r"(\s*,)?\s*(\band\b|\bthat says\b)?\s*$", "", prompt[:start])
            result = before + result[end:]
    if left and not quotes:
        result = f"{prompt.strip()} that says {added.removeprefix(' and ')}"
    return result


def _with_colour(prompt: str, layout: Layout) -> str:
    colours = [line.colour for line in layout.lines if line.colour]
    if not colours:
        return prompt
    phrase = f"in {colours[0]} letters"
    if _COLOUR.search(prompt):
        return _COLOUR.sub(phrase, prompt, count=1)
    spans = read_quotations(prompt).with_marks
    end = spans[-1][1] if spans else len(prompt)
    return f"{prompt[:end]} {phrase}{prompt[end:]}"
