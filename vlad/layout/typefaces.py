"""Typefaces of posters and their glyph maps: sixteen families of different kinds, each a file beside its licence.

The files are the Latin subsets that Fontsource distributes (`@fontsource/NAME` 5.3.0), unmodified. All are under the
SIL Open Font License 1.1 but Roboto Slab (Apache 2.0).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path

from PIL import ImageFont

from vlad.types import Prompt

MEASURED_PIXELS = 1000
MOST_SIZES = 4096  # fonts at a size that are kept loaded


@dataclass(frozen=True)
class Typeface:
    """A family: its file, and what a caption calls it."""

    name: str
    kind: str
    # The words that captions use for letters of this kind, the plainest first.
    called: tuple[str, ...]
    # Has capitals alone, whatever the text.
    capitals: bool = False
    # Never in training sets: what is rendered with it measures letters of an unseen typeface.
    held_out: bool = False


TYPEFACES = (
    Typeface("archivo", "grotesque", ("sans-serif", "bold sans-serif")),
    Typeface("cabin", "humanist", ("sans-serif", "humanist sans-serif")),
    Typeface("zilla-slab", "slab", ("slab serif",)),
    Typeface("eb-garamond", "old-style", ("serif", "old-style serif")),
    Typeface("bodoni-moda", "didone", ("serif", "high-contrast serif")),
    Typeface("pacifico", "script", ("script", "brush script")),
    Typeface("caveat", "hand", ("handwritten",)),
    Typeface("patrick-hand", "hand", ("handwritten", "hand-printed")),
    Typeface("oswald", "condensed", ("condensed", "narrow")),
    Typeface("anton", "condensed", ("condensed", "heavy condensed")),
    Typeface("nunito", "rounded", ("rounded",)),
    Typeface("saira-stencil-one", "stencil", ("stencil",)),
    Typeface("space-mono", "mono", ("monospaced", "typewriter")),
    Typeface("bungee", "display", ("display", "blocky"), capitals=True),
    Typeface("work-sans", "grotesque", ("sans-serif", "bold sans-serif"), held_out=True),
    Typeface("roboto-slab", "slab", ("slab serif",), held_out=True),
)


@cache
def typefaces(held_out: bool) -> tuple[Typeface, ...]:
    """Those of training sets, or those held out from them."""
    return tuple(face for face in TYPEFACES if face.held_out is held_out)


NAMES = frozenset(face.name for face in TYPEFACES)
PLAIN = "archivo"  # of lines that name no typeface


def typeface_named(words: str) -> str | None:
    """The typeface that words such as "in large red serif letters" ask for; None where they ask for none."""
    found = [
        (len(called), -number, face.name)
        for number, face in enumerate(typefaces(held_out=False))
        for called in face.called
        if re.search(rf"\b{re.escape(called)}\b", words)
    ]
    return max(found)[2] if found else None


def typefaces_of(prompt: Prompt) -> tuple[str | None, ...]:
    """The typeface that a prompt asks for behind each of its quoted strings; lines of one string share theirs."""
    found: list[str | None] = []
    following, after = len(prompt.text), None
    for quote in reversed(prompt.quotes):
        words = prompt.text[quote.end : following]
        after = typeface_named(words) if words.strip() else after
        found.append(after)
        following = quote.start
    return tuple(reversed(found))


@cache
def typeface_file(name: str) -> Path:
    """The file of a typeface."""
    return Path(str(files("vlad.layout").joinpath("typeface_files", f"{name}.woff2")))


@lru_cache(maxsize=MOST_SIZES)
def font(name: str, size_pixels: int) -> ImageFont.FreeTypeFont:
    """The typeface at a size (pixels an em)."""
    return ImageFont.truetype(str(typeface_file(name)), size_pixels, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=MOST_SIZES)
def _measuring_font(name: str) -> ImageFont.FreeTypeFont:
    """The typeface at a size at which rounding does not count, with the kerning that libraqm knows."""
    return ImageFont.truetype(str(typeface_file(name)), MEASURED_PIXELS, layout_engine=ImageFont.Layout.RAQM)


def measure(name: str, text: str) -> float:
    """The length of a text in em, kerning included."""
    return _measuring_font(name).getlength(text) / MEASURED_PIXELS
