"""Caption templates: captions that quote the text in an image.

Where a source has no caption, one is composed: `a picture that says "OPEN", "DAILY" and "9 TO 5"`, with the largest
legible lines in reading order; `a picture without text` where there is none; `a picture` where none is legible. In a
captioner's sentence exactly those strings are quoted. (The captions say "picture" because existing shards do.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlad.layout.polygons import polygon_area
from vlad.types import TextLine

# Quotation marks of people and language models. Single ones stay: most are apostrophes.
_DOUBLE_MARKS = re.compile('["“”„«»‹›「」『』＂]')


def strings_to_quote(lines: Sequence[TextLine], max_strings: int) -> tuple[str, ...]:
    """The `max_strings` largest valid lines, in the given order.

    Double quotation marks around a line are dropped, those inside become single ones: they would end the quotation.
    """
    largest = sorted((line for line in lines if line.valid), key=lambda line: -polygon_area(line.polygon))
    chosen = [line for line in lines if any(line is other for other in largest[:max_strings])]
    quotable = (" ".join(line.text.strip('" ').replace('"', "'").split()) for line in chosen)
    return tuple(text for text in quotable if text)


def compose_caption(strings: Sequence[str], any_lines: bool) -> str:
    """The caption of an image of which only the text is known."""
    if not strings:
        return "a picture" if any_lines else "a picture without text"
    return f"a picture that says {listed(strings)}"


def with_quotations(caption: str, strings: Sequence[str]) -> str:
    """The caption with exactly `strings` quoted in it.

    A string that the caption contains, in any marks or none, is quoted as it is spelled in the image; a missing one is
    appended: `..., with text that says "OPEN" and "DAILY"`. Other quotations lose their marks, since the image does not
    show them.
    """
    caption = " ".join(caption.split())
    missing = []
    # The longest first: a string may hold another.
    pieces: list[str] = [caption]  # plain and quoted in turn
    for text in sorted(dict.fromkeys(strings), key=len, reverse=True):
        match = None
        for index in range(0, len(pieces), 2):
            match = _find(text, pieces[index])
            if match is not None:
                plain = pieces[index]
                pieces[index : index + 1] = [plain[: match.start()], f'"{text}"', plain[match.end() :]]
                break
        if match is None:
            missing.append(text)
    pieces[::2] = [_DOUBLE_MARKS.sub("", piece) for piece in pieces[::2]]
    sentence = " ".join("".join(pieces).split())
    if not missing:
        return sentence
    missing = [text for text in dict.fromkeys(strings) if text in missing]
    sentence = sentence.rstrip(" .,;:") or "a picture"
    return f"{sentence}, with text that says {listed(missing)}"


def listed(strings: Sequence[str]) -> str:
    """Strings in quotation marks: "A", "B" and "C"."""
    quoted = [f'"{text}"' for text in strings]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _find(text: str, plain: str) -> re.Match[str] | None:
    """The string as whole words of `plain`: in quotation marks of any kind and any case, or bare as spelled."""
    words = r"\s+".join(map(re.escape, text.split()))
    marked = re.search(rf"[\"“”„«»‹›「『‘‚'＂]{words}[.,]?[\"”“«»‹›」』‘’'＂]", plain, re.IGNORECASE)
    return marked or re.search(rf"(?<!\w){words}(?!\w)", plain)
