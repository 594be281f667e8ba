"""Quotations as people type them: which strings a prompt asks to spell, and what it says about other readings."""

from __future__ import annotations

import pytest

from vlad.models.text_encoder.prompt import notes_on_quotations, parse_prompt, wrap_strings
from vlad.models.text_encoder.quotations import read_quotations
from vlad.utils.errors import UserError

AS_TYPED = [
    ('a \'90s diner sign that says "OPEN"', ("OPEN",)),
    ("a '90s diner with a sign 'OPEN'", ("OPEN",)),
    ("the '80s and the '90s, a poster", ()),
    ("class of '22 banner reading 'GRADS'", ("GRADS",)),
    ("a badge that says '22'", ("22",)),
    ("a poster 'Summer of '69'", ("Summer of '69",)),
    ("rock 'n' roll poster that says \"LIVE\"", ("LIVE",)),
    ("rock ’n’ roll", ()),
    ("a sign that says 'n'", ("n",)),
    ("'til dawn, a neon sign “BAR”", ("BAR",)),
    ("'Twas the night before, a card “NOEL”", ("NOEL",)),
    ("a sign 'round the corner that says 'CAFE'", ("CAFE",)),
    ("get 'em while they're hot, sign \"PIE\"", ("PIE",)),
    ('a 12" by 14" poster that says "SALE"', ("SALE",)),
    ('a 12" by 14" poster', ()),
    ("a man 5'10\" tall beside a sign 'EXIT'", ("EXIT",)),
    ('a 6\' tall sign that says "TALL"', ("TALL",)),
    ('"A 12" pizza"', ('A 12" pizza',)),
    ('a sign "HELLO 12" next to "BYE"', ("HELLO 12", "BYE")),
    ('a box labelled "SIZE 12"', ("SIZE 12",)),
    ("a banner 'Ladies' Night'", ("Ladies' Night",)),
    ("a banner ‘Ladies’ Night’ in pink", ("Ladies’ Night",)),
    ("signs 'Cats' and 'Dogs'", ("Cats", "Dogs")),
    ("the dogs' bowl says 'REX'", ("REX",)),
    ("a sign 'The Dogs' Bowl' over the cats' bowl", ("The Dogs' Bowl",)),
    ('a sign "HELLO”', ("HELLO",)),
    ('a sign “HELLO" and a sign “BYE"', ("HELLO", "BYE")),
    ('a sign "HELLO” and a sign "BYE”', ("HELLO", "BYE")),
    ('a sign „HELLO"', ("HELLO",)),
    ("a sign ‘HELLO'", ("HELLO",)),
    ("a sign 'HELLO’ and", ("HELLO",)),
    ('a sign ""HELLO""', ("HELLO",)),
    ("a sign ''HELLO''", ("HELLO",)),
    ('a sign """HELLO"""', ("HELLO",)),
    ("a sign ``HELLO''", ("HELLO",)),
    ('a sign \\"HELLO\\"', ("HELLO",)),
    ("a sign \\'HELLO\\'", ("HELLO",)),
    ("a sign &quot;HELLO&quot;", ("HELLO",)),
    ("a sign &ldquo;HELLO&rdquo;", ("HELLO",)),
    ("a sign &#39;HELLO&#39;", ("HELLO",)),
    ("a sign &#x27;HELLO&#x27; &amp; more", ("HELLO",)),
    ("a sign &laquo;HELLO&raquo;", ("HELLO",)),
    ("a sign &apos;HELLO&apos;", ("HELLO",)),
    ("a sign ’HELLO’", ("HELLO",)),
    ("a sign ’HELLO‘", ("HELLO",)),
    ("a sign ”HELLO”", ("HELLO",)),
    ("it’s a sign ’DON’T’", ("DON’T",)),
    ("封面上写着《你好》", ("你好",)),
    ("一张写着【特价】的海报", ("特价",)),
    ("〈入口〉と書かれた看板", ("入口",)),
    ("『営業中』", ("営業中",)),
    ("a sign `HELLO`", ("HELLO",)),
    ("a sign ´HELLO´", ("HELLO",)),
    ("a sign `HELLO'", ("HELLO",)),
    ("a poster with the text HELLO", ("HELLO",)),
    ("a poster with the words HELLO WORLD in red", ("HELLO WORLD",)),
    ("a sign that says NO PARKING.", ("NO PARKING",)),
    ("a sign that reads: 50% OFF", ("50% OFF",)),
    ("A sign saying STOP", ("STOP",)),
    ("a USA flag with the text Hello", ()),
    ("a sign that says hello", ()),
    ("a T-shirt that says I love cats", ()),
    ("a TV that shows the NBA logo", ()),
    ('“say "hi" now”', ('say "hi" now',)),
    ('"say “hi” now"', ("say “hi” now",)),
    ("a poster: “say ‘NO’ twice”", ("say ‘NO’ twice",)),
    ("'rock 'n' roll'", ("rock 'n' roll",)),
    ("a shirt 'Rock 'n' Roll Forever' in black", ("Rock 'n' Roll Forever",)),
    ('a 3" sticker', ()),
    ("a 10' x 12' banner that says 'HOWDY'", ("HOWDY",)),
    ('tire 15", sign "TYRES"', ("TYRES",)),
    ("O'Brien's Pub sign 'O'Brien's'", ("O'Brien's",)),
    ("a sign that says 'Don't Panic'", ("Don't Panic",)),
    ("a sign that says «Bonjour» et »Hallo«", ("Bonjour", "Hallo")),
    ("a can of 'Joe's Beans', label 'Beans'", ("Joe's Beans", "Beans")),
    ('a sign says"HELLO"', ("HELLO",)),
    ('the word "A" and 5" nails and "B"', ("A", "B")),
    ("the players' tunnel", ()),
    ("a 'Kids' Menu' board with 'Pasta'", ("Kids' Menu", "Pasta")),
    ("students' 'Pride' flag", ("Pride",)),
    ("a mug: 'World's Best Dad'", ("World's Best Dad",)),
    ("a sign that says “Fish ’n’ Chips”", ("Fish ’n’ Chips",)),
    ("a fish 'n' chips shop called 'Cod'", ("Cod",)),
    ("titled ‘The Boss’s Chair’", ("The Boss’s Chair",)),
    ('a 12"x14" poster "SALE"', ("SALE",)),
    ('a 24"W x 36"H frame “ART”', ("ART",)),
    ('a 9½" nail, sign "NAILS"', ("NAILS",)),
    ('a 55" TV showing "NEWS 24" and a 10" tablet', ("NEWS 24",)),
    ('a screen "CH 5" and a 10" tablet "OK"', ("CH 5", "OK")),
    ('"A 12" pizza" and a 10" pan', ('A 12" pizza',)),
    ("'nuff said, a sign 'OK'", ("OK",)),
    ('\'nother sign, with "OK"', ("OK",)),
    ("a sign 'fish 'n' chips' and 'cod'", ("fish 'n' chips", "cod")),
    ("a shirt saying 'live at the '60s club'", ("live at the '60s club",)),
    ('a sign "HELLO""', ("HELLO",)),
    ('a sign ""HELLO"', ("HELLO",)),
    ("''Tis the season'", ("'Tis the season",)),
    ('a sign \\\\"HELLO\\\\"', ("HELLO",)),
    ("a sign &amp;quot;HELLO&amp;quot;", ("HELLO",)),
    ("a sign ,,HALLO''", ("HALLO",)),
    ("a sign ,,HALLO“ in red", ("HALLO",)),
    ("a sign << BONJOUR >>", ("BONJOUR",)),
    ("a sign “say <<hi>>”", ("say <<hi>>",)),
    ("〔入口〕｢出口｣", ("入口", "出口")),
    ("a sign with the text CAFÉ", ("CAFÉ",)),
    ("a sign that says ПРИВЕТ МИР in red", ("ПРИВЕТ МИР",)),
    ("a sign that says OPEN, 4K, HDR", ("OPEN",)),
    ("a sign that says STOP. NASA rocket", ("STOP",)),
    ("a shirt that reads I ♥ NY", ("I ♥ NY",)),
    ("the letter A in neon", ("A",)),
    ("a clock that reads 12:30", ("12:30",)),
    ("a man who reads 100 books", ()),
]


@pytest.mark.parametrize(("prompt", "strings"), AS_TYPED)
def test_prompts_are_read_as_a_person_reads_them(prompt: str, strings: tuple[str, ...]) -> None:
    parsed = parse_prompt(prompt)
    assert parsed.strings == strings
    assert all(prompt[quote.start : quote.end] == quote.text for quote in parsed.quotes)


@pytest.mark.parametrize(
    ("prompt", "note"),
    [
        ("a poster with the text HELLO", 'HELLO is taken for the words to spell; write "..." around others.'),
        ("the '90s, a poster", '\'90s is taken for a word with an apostrophe; write "..." around words to spell.'),
    ],
)
def test_a_reading_that_was_chosen_is_reported(prompt: str, note: str) -> None:
    assert notes_on_quotations(parse_prompt(prompt)) == (note,)


def test_captions_from_the_web_are_taken_at_their_marks() -> None:
    assert read_quotations("a poster with the text HELLO", strict=False).spans == ()


@pytest.mark.parametrize(
    "prompt", ["a sign 'HELLO", 'a sign HELLO"', 'a sign \\"HELLO', "a sign &quot;HELLO", "《HELLO"]
)
def test_a_mark_without_its_other_is_refused(prompt: str) -> None:
    with pytest.raises(UserError, match="is never closed"):
        parse_prompt(prompt)


@pytest.mark.parametrize(
    ("string", "lines"),
    [
        ("HELLO", ("HELLO",)),
        ("HELLO\nWORLD", ("HELLO", "WORLD")),
        ("HELLO\\nWORLD", ("HELLO", "WORLD")),
        ("HELLO\r\n\u2028WORLD", ("HELLO", "WORLD")),
        ("NOW OPEN ON SUNDAYS", ("NOW OPEN", "ON", "SUNDAYS")),
        ("A B C D E F", ("A B C D", "E F")),
        ("ANTIDISESTABLISHMENT", ("ANTIDIS", "ESTABLI", "SHMENT")),
        ("TO ANTIDISES", ("TO", "ANTID", "ISES")),
        ("  SPACED   OUT  ", ("SPACED", "OUT")),
    ],
)
def test_strings_are_set_in_lines_that_the_model_writes(string: str, lines: tuple[str, ...]) -> None:
    text = f'a sign that says "{string}" and "BYE"'
    wrapped = wrap_strings(parse_prompt(text), 8)
    assert wrapped.strings == (*lines, "BYE")
    assert all(text[quote.start : quote.end] == quote.text for quote in wrapped.quotes)
    assert (wrapped.text, wrapped.phrases) == (text, parse_prompt(text).phrases)
