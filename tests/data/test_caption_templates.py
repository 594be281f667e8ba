"""Captions that quote exactly the text in the image."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlad.data.importers.caption_templates import with_quotations
from vlad.models.text_encoder.prompt import parse_prompt


@pytest.mark.parametrize(
    ("written", "strings", "caption"),
    [
        ('A sign says "OPEN".', ("OPEN",), 'A sign says "OPEN".'),
        ("A sign says “Open.” in red", ("OPEN",), 'A sign says "OPEN" in red'),
        ("A sign says 'open' in red", ("OPEN",), 'A sign says "OPEN" in red'),
        ("A sign says »Open« in ‹red›", ("OPEN",), 'A sign says "OPEN" in red'),
        ("An OPEN sign", ("OPEN",), 'An "OPEN" sign'),
        ("An open door", ("OPEN",), 'An open door, with text that says "OPEN"'),
        ("A red wall.", ("OPEN", "DAILY"), 'A red wall, with text that says "OPEN" and "DAILY"'),
        ('A "CLOSED" sign', ("OPEN",), 'A CLOSED sign, with text that says "OPEN"'),
        ('"9 TO 5" and "9"', ("9", "9 TO 5"), '"9 TO 5" and "9"'),
        ("REOPENED", ("OPEN",), 'REOPENED, with text that says "OPEN"'),
        ('A wall "painted" red', (), "A wall painted red"),
        ("", ("OPEN",), 'a picture, with text that says "OPEN"'),
        ("", (), ""),
        ("two signs: SALE", ("SALE", "SALE"), 'two signs: "SALE"'),
    ],
)
def test_the_strings_are_quoted_and_nothing_else(written, strings, caption):
    assert with_quotations(written, strings) == caption


LETTERS = st.text("abAB \"“”'.,", max_size=12)


@given(LETTERS, st.lists(st.text("abAB", min_size=1, max_size=3), max_size=3))
def test_every_string_is_quoted_whatever_the_caption(written, strings):
    caption = with_quotations(written, strings)
    assert all(f'"{text}"' in caption for text in strings)
    assert caption.count('"') == 2 * len(set(strings))


@given(st.text('abAB "“”.,', max_size=12), st.lists(st.text("abAB", min_size=1, max_size=3), max_size=3))
def test_the_prompt_parser_finds_the_strings(written, strings):
    assert sorted(parse_prompt(with_quotations(f"x {written}", strings)).strings) == sorted(set(strings))
