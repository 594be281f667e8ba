"""Prompt parsing: quotation marks of every script, phrases, and spans that match their text exactly."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlad.models.text_encoder.prompt import find_objects, find_quotes, notes_on_quotations, parse_prompt
from vlad.types import Span
from vlad.utils.errors import UserError

PAIRS = [
    *('""', "''", "“”", "„“", "„”", "””", "‘’", "‚‘", "‚’"),
    *("«»", "»«", "»»", "‹›", "›‹", "「」", "『』", "＂＂"),
]
MARKS = "".join(sorted(set("".join(PAIRS))))
# Pieces that have something to do with each other's edges: marks, apostrophes, letters of many scripts, joiners.
PIECES = st.lists(
    st.one_of(
        st.sampled_from([*MARKS, " ", "-", "_", ",", "that", "a sign", "é", "日本", "สี", "न\u093f", "한", "7"]),
        st.text(),
    ),
    max_size=12,
).map("".join)


@pytest.mark.parametrize("pair", PAIRS)
def test_every_pair_of_marks_quotes(pair: str) -> None:
    text = f"a red sign that says {pair[0]}Open 24{pair[1]} in white letters"

    prompt = parse_prompt(text)

    assert prompt.strings == ("Open 24",)
    assert text[prompt.quotes[0].start : prompt.quotes[0].end] == "Open 24"
    assert [phrase.text for phrase in prompt.phrases] == ["a red sign", "white letters"]


def test_several_quotes_keep_the_order_of_the_prompt() -> None:
    text = "“ZEBRA” over 'APPLE' beside «MANGO» and „APPLE“"
    assert parse_prompt(text).strings == ("ZEBRA", "APPLE", "MANGO", "APPLE")


def test_the_outer_marks_win_and_the_inner_ones_are_spelled() -> None:
    assert parse_prompt("a poster: “say ‘NO’ twice”").strings == ("say ‘NO’ twice",)


@pytest.mark.parametrize(
    "text",
    ["don't", "it’s", "the dogs' bowl", "the dogs’ bowl", "l’eau et l'air", "the cafe\u0301's door", "rock 'n' roll"],
)
def test_apostrophes_quote_only_what_is_between_two(text: str) -> None:
    prompt = parse_prompt(f"{text} beside a sign that says 'GO'")

    assert prompt.strings == ("GO",)


@pytest.mark.parametrize("pair", ["''", "‘’"])
def test_apostrophes_inside_a_quotation_belong_to_it(pair: str) -> None:
    prompt = parse_prompt(f"the dogs' sign says {pair[0]}DON'T, it’s MINE{pair[1]}.")
    assert prompt.strings == ("DON'T, it’s MINE",)


@pytest.mark.parametrize(
    ("text", "string"),
    [
        ("写着'你好'的蓝色招牌", "你好"),
        ("写着‘你好’的蓝色招牌", "你好"),
        ("「営業中」と書かれた看板", "営業中"),
        ("'안녕'이라고 적힌 간판", "안녕"),
        ("ป้ายเขียนว่า'สวัสดี'สีแดง", "สวัสดี"),
    ],
)
def test_scripts_without_spaces_quote_in_the_middle_of_a_line(text: str, string: str) -> None:
    prompt = parse_prompt(text)

    assert prompt.strings == (string,)
    assert all(string not in phrase.text for phrase in prompt.phrases)


@pytest.mark.parametrize(
    ("text", "strings"),
    [
        ("«un» et «deux», puis « trois »", ("un", "deux", "trois")),
        ("»eins« und »zwei«", ("eins", "zwei")),
        ("a 6” plank, 5 m» long, that says “HI”", ("HI",)),  # straight after a letter a mark opens nothing
        ("«say «NO» twice»", ("say «NO",)),
    ],
)
def test_marks_that_open_in_one_language_and_close_in_another(text: str, strings: tuple[str, ...]) -> None:
    assert parse_prompt(text).strings == strings


@pytest.mark.parametrize("pair", PAIRS)
def test_an_unclosed_mark_is_refused_with_its_place(pair: str) -> None:
    text = f"a sign that says {pair[0]}HELLO"
    with pytest.raises(UserError, match=rf"{pair[0]} at character 18 of the prompt .* never closed"):
        parse_prompt(text)


def test_lenient_parsing_takes_an_unclosed_mark_for_a_character() -> None:
    prompt = parse_prompt("„a 6 inch“ plank, 2' long, that says “HI” and «never closed", strict=False)
    assert prompt.strings == ("a 6 inch", "HI")


@pytest.mark.parametrize("text", ["", "  \n\t", "\u3000"])
@pytest.mark.parametrize("strict", [True, False])
def test_an_empty_prompt_is_refused(text: str, strict: bool) -> None:
    with pytest.raises(UserError, match="empty"):
        parse_prompt(text, strict)


def test_empty_quotations_spell_nothing_and_blanks_at_the_edges_are_left_out() -> None:
    text = "a sign that says \"\" or '  ' or “ HI THERE ”"
    prompt = parse_prompt(text, strict=False)

    assert prompt.strings == ("HI THERE",)
    assert text[prompt.quotes[0].start : prompt.quotes[0].end] == "HI THERE"
    with pytest.raises(UserError, match="Nothing is between the quotation marks at character 18 of"):
        parse_prompt(text)


def test_phrases_end_at_punctuation_at_quotes_and_at_words_that_join() -> None:
    text = 'A well-lit shop, the dog\'s bowl "X" blue, and the cover of an old book'
    phrases = [phrase.text for phrase in parse_prompt(text).phrases]

    assert phrases == ["A well-lit shop", "the dog's bowl", "blue", "the cover", "an old book"]


def test_words_with_vowel_signs_stay_whole() -> None:
    assert [phrase.text for phrase in parse_prompt("नीली गाड़ी, cafe\u0301 noir").phrases] == [
        "नीली गाड़ी",
        "cafe\u0301 noir",
    ]


def test_articles_and_joining_words_alone_are_no_phrases() -> None:
    assert parse_prompt("with the “HI” on a").phrases == ()


@settings(max_examples=300, deadline=None, database=None)
@given(PIECES)
def test_spans_point_at_exactly_their_text_and_never_overlap(text: str) -> None:
    if not text.strip():
        return
    prompt = parse_prompt(text, strict=False)

    spans = sorted((*prompt.quotes, *prompt.phrases), key=lambda span: span.start)
    for span in spans:
        assert text[span.start : span.end] == span.text
        assert span.text.strip()
    for first, second in pairwise(spans):
        assert first.end <= second.start
    for quote in prompt.quotes:
        assert quote.text == quote.text.strip()


@settings(max_examples=300, deadline=None, database=None)
@given(PIECES)
def test_strict_parsing_agrees_with_lenient_where_it_accepts(text: str) -> None:
    try:
        strict = parse_prompt(text)
    except UserError:
        return
    lenient = parse_prompt(text, strict=False)
    # Capitals without marks are the words to spell in prompts that people type.
    assert lenient == strict or not lenient.quotes


@settings(max_examples=300, deadline=None, database=None)
@given(st.sampled_from(PAIRS), st.text(st.characters(exclude_characters=MARKS, exclude_categories=["Cs"]), min_size=1))
def test_any_text_between_marks_is_found(pair: str, content: str) -> None:
    strings = parse_prompt(f"a sign, {pair[0]}{content}{pair[1]}, on a wall", strict=bool(content.strip())).strings
    assert strings == ((content.strip(),) if content.strip() else ())


def test_phrases_are_those_of_the_objects_that_the_caption_names() -> None:
    text = 'A red car beside a RED  CAR that says "a red car" by the sea'
    objects = ["red car", "the sea", "red", "a boat", "red car", " "]

    found = find_objects(text, objects)

    assert [span and (span.text, span.start) for span in found] == [
        ("red car", 2),
        ("the sea", 53),
        None,  # there is one more, but in quotation marks
        None,
        ("RED  CAR", 19),
        None,
    ]
    assert [phrase.text for phrase in parse_prompt(text, objects=objects).phrases] == [
        *("red car", "RED  CAR", "the sea"),
    ]
    # None of them is named: the chunker's.
    assert parse_prompt("a blue wall", objects=["a boat"]) == parse_prompt("a blue wall")


def test_an_object_is_found_as_whole_words_and_anywhere_in_scripts_without_spaces() -> None:
    assert find_objects("a carpet and a car", ["car"]) == (Span("car", 15, 18),)
    assert [span.text for span in parse_prompt("街上的蓝色招牌很大", objects=["招牌"]).phrases] == ["招牌"]


@settings(max_examples=200, deadline=None, database=None)
@given(PIECES, st.lists(PIECES, max_size=4))
def test_spans_of_objects_point_at_their_text_and_never_overlap(text: str, objects: list[str]) -> None:
    # Pieces of the text itself are found, whatever they are made of.
    objects = [*objects, text[1:4], text]
    spans = find_objects(text, objects)
    assert len(spans) == len(objects)
    found = sorted((span for span in spans if span is not None), key=lambda span: span.start)
    for span in found:
        assert text[span.start : span.end] == span.text
    for first, second in pairwise(found):
        assert first.end <= second.start
        assert all(span.end <= quote.start or span.start >= quote.end for quote in find_quotes(text, strict=False))
    assert found or not text.strip() or find_quotes(text, strict=False)


def test_nested_marks_are_reported() -> None:
    prompt = parse_prompt("a poster: “say ‘NO’ twice” and 'DON'T'")
    assert notes_on_quotations(prompt) == (
        "The quotation marks inside 'say ‘NO’ twice' are spelled like its letters; leave one pair out otherwise.",
    )
