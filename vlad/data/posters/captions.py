"""Captions of posters: what the image shows, line by line, each text bound to its place, size, colour and typeface.

    a yellow poster with a blue circle, in the top left corner "SALE" in large red serif letters, below it "50 % off" in
    small white letters

Sentences vary; attributes are left out at random, so that prompts of any length are known. Strings stand in straight
double marks, which no text of `texts` holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SAYS = ("that says", "that reads", "with the text", "saying", "with the words")


@dataclass(frozen=True)
class LineWords:
    """What can be said of a line: its text, its middle (x, y in 0..1), and words for size, colour and typeface."""

    text: str
    centre: tuple[float, float]
    size: str | None
    colour: str
    typeface: str
    effect: str | None = None


def with_article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def place_words(x: float, y: float) -> str:
    """Where a middle at x, y (0..1) stands: corners, sides, top and bottom, middle."""
    row = "top" if y < 0.36 else "bottom" if y > 0.64 else ""
    column = "left" if x < 0.38 else "right" if x > 0.62 else ""
    if row and column:
        return f"in the {row} {column} corner"
    if column:
        return f"on the {column}"
    return f"at the {row}" if row else "in the middle"


def _letters(words: LineWords, rng: np.random.Generator, share: float) -> str:
    """ "in large red serif letters", with each attribute said at a chance of `share`; empty where none is."""
    said = [word for word in (words.size, words.colour, words.typeface) if word is not None and rng.random() < share]
    if not said:
        return ""
    noun = ("letters", "letters", "type", "lettering")[rng.integers(4)]
    effect = f" {words.effect}" if words.effect is not None and rng.random() < share else ""
    return f" in {' '.join(said)} {noun}{effect}"


def caption(
    carrier: str, lines: list[LineWords], objects: list[str], setting: str | None, rng: np.random.Generator
) -> str:
    """The caption of a poster.

    `carrier`: what carries the text, with its colour ("yellow poster"). `objects`: phrases with their places.
    `setting`: what is behind it, None where that is not said.
    """
    share = float(rng.choice([0.35, 0.8, 0.8, 1.0]))
    begin = with_article(carrier)
    if setting is not None:
        begin += f" {setting}"
    if objects:
        begin += f" with {' and '.join(objects)}"
    said = [f'"{line.text}"{_letters(line, rng, share)}' for line in lines]
    says = SAYS[rng.integers(len(SAYS))]
    if len(lines) == 1:
        place = f" {place_words(*lines[0].centre)}" if rng.random() < share else ""
        return f"{begin} {says} {said[0]}{place}"
    if rng.random() < 0.2:  # no places: a plain list from the top down
        return f"{begin} {says} {', '.join(said[:-1])} and {said[-1]}"
    parts, previous = [], None
    for line, text in zip(lines, said, strict=True):
        below = previous is not None and line.centre[1] > previous.centre[1] + 0.06
        aligned = previous is not None and abs(line.centre[0] - previous.centre[0]) < 0.25
        if below and aligned and rng.random() < 0.6:
            where = ("below it", "below", "under it", "then")[rng.integers(4)]
        else:
            where = place_words(*line.centre)
        parts.append(f"{where} {text}")
        previous = line
    joint = (", ", ", ", "; ")[rng.integers(3)]
    return f"{begin}{joint if rng.random() < 0.7 else ': '}{joint.join(parts)}"
