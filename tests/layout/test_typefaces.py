"""Typefaces: prompts name them, and glyph maps set lines in them."""

from __future__ import annotations

import numpy as np
import pytest

from vlad.layout.fonts import TYPEFACE_FONT
from vlad.layout.glyph_map import render_glyph_map
from vlad.layout.polygons import box_polygon
from vlad.layout.typefaces import NAMES, PLAIN, TYPEFACES, typeface_named, typefaces_of
from vlad.models.text_encoder.prompt import parse_prompt, wrap_strings
from vlad.types import Layout, TextLine


@pytest.mark.parametrize("face", TYPEFACES, ids=lambda face: face.name)
def test_every_name_that_captions_use_is_understood(face):
    for called in face.called:
        named = typeface_named(f" in large red {called} letters with a shadow, below it ")
        assert named in NAMES
        assert called in next(other.called for other in TYPEFACES if other.name == named)
        assert not next(other.held_out for other in TYPEFACES if other.name == named)


@pytest.mark.parametrize(
    ("prompt", "faces"),
    [
        (
            'a poster, at the top "SALE" in large serif letters, below it "now" in script letters',
            ("eb-garamond", "pacifico"),
        ),
        ('a poster that says "SALE" and "NOW" in bold sans-serif letters', (None, "archivo")),
        ('a serif poster that says "SALE"', (None,)),
        ('a sign with "slab serif" in slab serif letters', ("zilla-slab",)),
        ("a sign without text", ()),
        ('a poster that says "SALE" in observers\' letters', (None,)),
    ],
)
def test_a_string_has_the_typeface_that_is_named_behind_it(prompt, faces):
    assert typefaces_of(parse_prompt(prompt)) == faces


def test_the_lines_of_one_string_share_its_typeface():
    prompt = wrap_strings(parse_prompt('a sign that says "ALL THE LONG STRINGS" in stencil letters'), 8)
    assert len(prompt.strings) > 1
    assert typefaces_of(prompt) == ("saira-stencil-one",) * len(prompt.strings)


def test_a_glyph_map_of_typefaces_sets_each_line_in_its_own():
    box = box_polygon(0.1, 0.2, 0.9, 0.6)

    def rendered(font: str | None) -> np.ndarray:
        return render_glyph_map(Layout((TextLine("Market", box, font=font),), TYPEFACE_FONT), 128, 128)

    maps = {name: rendered(name) for name in sorted(NAMES)}
    for one in maps.values():
        assert sum(np.array_equal(one, other) for other in maps.values()) == 1
    for unknown in (None, "comic-sans"):
        assert np.array_equal(rendered(unknown), maps[PLAIN])
