"""Hard negatives and rewordings: what they change, what they keep, and what cannot be swapped."""

import random
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlad.losses.extra.hard_negatives import (
    ASYMMETRIC,
    COLOURS,
    POSITIONS,
    QUOTING_SYNONYMS,
    SYNONYMS,
    reword,
    swap_colours,
    swap_nouns,
    swap_positions,
    vary_captions,
)
from vlad.models.text_encoder.prompt import parse_prompt

Swap = Callable[[str, random.Random], str | None]
SIGN = 'a blue sign that says "RED TOP" in white letters at the top'


def outcomes(swap: Swap, caption: str) -> set[str | None]:
    return {swap(caption, random.Random(seed)) for seed in range(60)}


def unquoted_words(caption: str) -> list[str]:
    """Words with a meaning: outside the quotes, without articles, synonyms as one."""
    prompt = parse_prompt(caption, strict=False)
    text = caption
    for quote in reversed(prompt.quotes):
        text = text[: quote.start] + " " + text[quote.end :]
    first = {word: words[0] for words in (*SYNONYMS, *QUOTING_SYNONYMS) for word in words}
    return [first.get(w, w) for w in re.findall(r"\w+", text.lower()) if w not in ("a", "an", "the")]


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        (SIGN, {'a white sign that says "RED TOP" in blue letters at the top'}),
        ("A Red cube on an orange ball", {"An Orange cube on a red ball"}),
        ("a GREY cat, a black dog", {"a BLACK cat, a grey dog"}),
        ("the tall tree", {None}),
        ('a sign that says "RED"', {None}),
    ],
)
def test_colours_of_different_things_are_exchanged(caption: str, wanted: set[str | None]) -> None:
    assert outcomes(swap_colours, caption) == wanted


@pytest.mark.parametrize(
    "caption", ["a red and white flag", "a red cat and a white cat", "a red car", "a gray and grey wall"]
)
def test_a_colour_is_replaced_if_an_exchange_would_keep_the_meaning(caption: str) -> None:
    named = [word for word in unquoted_words(caption) if word in COLOURS]
    found = outcomes(swap_colours, caption)
    assert len(found) > 3
    for text in found:
        assert text is not None
        changed = [word for word in unquoted_words(text) if word in COLOURS]
        assert len(changed) == len(named)
        assert sum(a != b for a, b in zip(named, changed, strict=True)) == 1
        assert len(set(changed) - set(named)) == 1


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("a red cube on a blue ball", {"a red ball on a blue cube"}),
        ("a black cat and a white dog", {"a black dog and a white cat"}),
        ("a cat on an old mat", {"a mat on an old cat"}),
        ("an apple in a box", {"a box in an apple"}),
        # These hold as well the other way round.
        ("a cat beside a dog", {None}),
        ("a big cat and a large dog", {None}),
        ("a red sign at the top", {None}),
        ("a cat on a cat", {None}),
        ("a tree", {None}),
    ],
)
def test_nouns_are_exchanged_if_that_changes_the_meaning(caption: str, wanted: set[str | None]) -> None:
    assert outcomes(swap_nouns, caption) == wanted


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("a cat on the left of a dog", {"a cat on the right of a dog"}),
        ("The upper shelf", {"The lower shelf"}),
        ("a cat above a dog", {"a cat below a dog", "a cat beneath a dog"}),
        ("A dog in  front of a house", {"A dog behind a house"}),
        ("a sign in the centre", {"a sign at the top", "a sign at the bottom"}),
        ("a man who left, all right", {None}),
        ('a sign that says "the top"', {None}),
    ],
)
def test_positions_are_replaced_by_others(caption: str, wanted: set[str | None]) -> None:
    assert outcomes(swap_positions, caption) == wanted


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("A big tree", {"A large tree"}),
        ('a LITTLE shop that says "shop"', {'a LITTLE shop that reads "shop"', 'a SMALL shop that says "shop"'}),
        ("a man reading", {None}),
        ("an automobile", {"a car"}),
    ],
)
def test_rewordings_keep_the_meaning(caption: str, wanted: set[str | None]) -> None:
    found = outcomes(reword, caption)
    assert found >= wanted
    assert all(text is None or unquoted_words(text) == unquoted_words(caption) for text in found)


VOCABULARY = sorted(
    {
        *COLOURS,
        *ASYMMETRIC,
        *(w for row in (*SYNONYMS, *QUOTING_SYNONYMS) for w in row),
        *(p for row in POSITIONS for p in row),
    }
)
WORDS = st.sampled_from(
    [*VOCABULARY, "a", "An", "THE", "sign", "Tree", "dogs'", "猫", "l'eau", "and", ",", "that says"]
)
MARKS = st.sampled_from(['""', "''", "“”", "„“", "‘’", "«»", "「」", '"', "'", "“"])  # some are never closed
QUOTED = st.builds(lambda marks, text: marks[:1] + text + marks[1:], MARKS, st.text(max_size=6))
CAPTIONS = st.lists(st.one_of(WORDS, WORDS, WORDS, QUOTED), min_size=1, max_size=14).map(" ".join)


@given(CAPTIONS.filter(str.strip), st.integers(0, 2**32))
def test_any_swap_changes_the_meaning_and_no_quoted_string(caption: str, seed: int) -> None:
    before = parse_prompt(caption, strict=False)
    for swap in (swap_colours, swap_nouns, swap_positions):
        text = swap(caption, random.Random(seed))
        if text is not None:
            assert parse_prompt(text, strict=False).strings == before.strings
            assert unquoted_words(text) != unquoted_words(caption)
            assert text == swap(caption, random.Random(seed))


@given(CAPTIONS.filter(str.strip), st.integers(0, 2**32))
def test_any_rewording_keeps_the_meaning_and_the_quoted_strings(caption: str, seed: int) -> None:
    text = reword(caption, random.Random(seed))
    if text is not None:
        assert text != caption
        assert parse_prompt(text, strict=False).strings == parse_prompt(caption, strict=False).strings
        assert unquoted_words(text) == unquoted_words(caption)


def test_variants_of_a_caption_differ_and_have_their_roles() -> None:
    captions = [SIGN, "a cat", "a big red cube on a blue ball"]

    variants = vary_captions(captions, seed=3, hard_negatives=2, rewordings=2)

    assert variants.roles.tolist() == [[1, 0, -1, -1], [0, 0, 0, 0], [1, 0, -1, -1]]
    for row, caption in enumerate(captions):
        texts = variants.texts[4 * row : 4 * row + 4]
        roles = variants.roles[row].tolist()
        kept = [text for text, role in zip(texts, roles, strict=True) if role]
        assert len({*kept, caption}) == len(kept) + 1
        assert [unquoted_words(text) == unquoted_words(caption) for text in texts] == [role >= 0 for role in roles]


def test_variants_depend_on_the_seed_only() -> None:
    captions = [SIGN] * 8
    first = vary_captions(captions, 0, 1, 0)
    random.seed(5)
    torch.manual_seed(5)
    assert vary_captions(captions, 0, 1, 0).texts == first.texts
    assert vary_captions(captions, 1, 1, 0).texts != first.texts
    assert len(set(first.texts)) > 1  # equal captions get swaps of their own
    assert vary_captions([], 0, 1, 1).roles.shape == (0, 2)
