"""A prompt that says what stands on the canvas: its words, and the colour of its letters."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlad.models.text_encoder.prompt import parse_prompt, plain_prompt, quoted
from vlad.types import Layout

_COLOUR = re.compile(r"\bin (\w+) letters\b")


def prompt_of_canvas(prompt: str, layout: Layout) -> str:
    """The prompt with the lines' texts as its quoted strings, and their colour as that of the letters.

    Strings that a line still has are left; others give way to the lines that have none, in order; what is left over is
    taken out, or added behind the last one. Raises UserError for an empty prompt and a mark that is never closed.
    """
    if not prompt.strip():
        prompt = plain_prompt([line.text for line in layout.lines])
    return _with_colour(_with_strings(prompt, [line.text.strip() for line in layout.lines]), layout)


def _with_strings(prompt: str, texts: Sequence[str]) -> str:
    quotes = parse_prompt(prompt).quotes
    left = list(texts)
    wanted: list[str | None] = []
    for quote in quotes:
        if quote.text in left:
            left.remove(quote.text)
            wanted.append(quote.text)
        else:
            wanted.append(None)
    wanted = [left.pop(0) if text is None and left else text for text in wanted]
    # With their marks, and the white space that may stand inside them.
    spans = [
        (len(prompt[: quote.start].rstrip()) - 1, len(prompt) - len(prompt[quote.end :].lstrip()) + 1)
        for quote in quotes
    ]
    result, added = prompt, "".join(f" and {quoted(text)}" for text in left)
    # From the end, so that the places before stay true.
    for number in reversed(range(len(quotes))):
        (start, end), text = spans[number], wanted[number]
        if text is not None:
            said = prompt[start:end] if text == quotes[number].text else quoted(text)
            result = result[:start] + said + (added if number == len(quotes) - 1 else "") + result[end:]
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
    said = f"in {colours[0]} letters"
    if _COLOUR.search(prompt):
        return _COLOUR.sub(said, prompt, count=1)
    quotes = parse_prompt(prompt).quotes
    end = len(prompt) - len(prompt[quotes[-1].end :].lstrip()) + 1 if quotes else len(prompt)
    return f"{prompt[:end]} {said}{prompt[end:]}"
