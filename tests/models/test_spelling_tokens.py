"""Spelling tokens: which character, at which place, of which string."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlad.models.spelling_tokens import MAX_LETTER_WIDTH, MAX_TOKENS, SpellingEncoder
from vlad.types import Prompt, Span

torch.manual_seed(0)
ENCODER = SpellingEncoder(width=16, max_characters=6, max_strings=3)


def prompt_of(*strings: str) -> Prompt:
    text = "".join(f"“{string}”" for string in strings)
    starts = [1 + sum(len(other) + 2 for other in strings[:index]) for index in range(len(strings))]
    spans = tuple(Span(string, start, start + len(string)) for string, start in zip(strings, starts, strict=True))
    return Prompt(text, (), spans)


@torch.no_grad()
def spell(*strings: str) -> Tensor:
    """The spelling tokens of one prompt, S D, without padding."""
    tokens, mask = ENCODER([prompt_of(*strings)])
    return tokens[0, mask[0]]


def differ(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).abs().max() > 1e-2)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((("AA",), 0), (("AA",), 1)),  # places of one string
        ((("AB",), 0), (("ABC",), 0)),  # lengths
        ((("AB", "AB"), 0), (("AB", "AB"), 2)),  # strings of one prompt
        ((("AB",), 0), (("AB", "CD"), 0)),  # numbers of strings
        ((("AB",), 0), (("BA",), 0)),  # characters
    ],
)
def test_a_token_encodes_character_place_length_and_string(
    first: tuple[tuple[str, ...], int], second: tuple[tuple[str, ...], int]
) -> None:
    assert differ(spell(*first[0])[first[1]], spell(*second[0])[second[1]])


def test_a_token_depends_on_nothing_else() -> None:
    # The neighbours' letters leave a token alone; they are read by attention.
    torch.testing.assert_close(spell("CAT", "DOG")[1], spell("RAW", "PIG")[1], atol=1e-6, rtol=0)


@torch.no_grad()
def test_masks_count_the_characters_and_padding_changes_none_of_them() -> None:
    prompts = [prompt_of("HI"), prompt_of(), prompt_of("ÀÉ", "日本語", "x")]

    tokens, mask = ENCODER(prompts)

    assert tokens.shape == (3, 6, 16)
    assert mask.sum(dim=1).tolist() == [2, 0, 6]
    assert mask[0].tolist() == [True, True, False, False, False, False]
    for row, strings in enumerate((("HI",), (), ("ÀÉ", "日本語", "x"))):
        torch.testing.assert_close(tokens[row, mask[row]], spell(*strings), atol=1e-6, rtol=0)


@torch.no_grad()
def test_prompts_without_strings_have_one_masked_token() -> None:
    tokens, mask = ENCODER([prompt_of(), prompt_of("")])

    assert tokens.shape == (2, 1, 16)
    assert mask.tolist() == [[False], [False]]


@settings(deadline=None, database=None)
@given(st.lists(st.characters().filter(lambda c: not c.isspace()), min_size=2, max_size=2, unique=True))
def test_any_two_characters_of_any_script_differ(pair: list[str]) -> None:
    assert differ(spell(pair[0]), spell(pair[1]))


@torch.no_grad()
def test_within_the_limits_a_token_is_the_sum_of_its_tables() -> None:
    nominal = 0.5 + (1 + 0.5 - 3 / 2) * MAX_LETTER_WIDTH  # the second of three characters
    angles = nominal * ENCODER.frequencies
    wanted = (
        sum(ENCODER.bytes.weight[256 * k + byte] for k, byte in enumerate([*"é".encode(), 0, 0]))
        + ENCODER.places.weight[2 * 6 + 1]
        + ENCODER.strings.weight[1 * 3 + 1]  # the second of two strings
        + ENCODER.fourier(torch.cat([angles.sin(), angles.cos()]))
    )
    torch.testing.assert_close(spell("AB", "Réd")[3], wanted)


def test_a_long_string_is_spelled_as_the_lines_that_it_is_set_in() -> None:
    torch.testing.assert_close(spell("AAAAABBBBB"), spell("AAAAA", "BBBBB"))  # tables for 6 characters
    torch.testing.assert_close(spell("AB CD EF", "G"), spell("AB CD", "EF", "G"))
    torch.testing.assert_close(spell("AB\nCD"), spell("AB", "CD"))


def test_past_the_limits_strings_share_the_last_place() -> None:
    assert len(spell("A", "B", "C", "D", "E")) == 5  # tables for 3 strings
    torch.testing.assert_close(spell("A", "B", "C", "D")[:3], spell("A", "B", "C"))
    torch.testing.assert_close(spell("A", "B", "C", "D")[3], spell("A", "B", "D")[2])


def test_a_quoted_page_is_cut_and_half_a_surrogate_pair_is_spelled_as_a_question_mark() -> None:
    assert len(spell(*["LONG" * 100] * 3)) == MAX_TOKENS
    torch.testing.assert_close(spell("A\ud800"), spell("A?"))
