"""Wording of error messages."""

import pytest

from vlad.utils.errors import as_sentence, did_you_mean


@pytest.mark.parametrize(
    ("reason", "said"), [("no", "no."), ("no.", "no."), ("Did you mean 'a'?", "Did you mean 'a'?"), (" a\n b ", "a b.")]
)
def test_an_error_inside_another_ends_with_one_mark(reason: str, said: str) -> None:
    assert as_sentence(ValueError(reason)) == said


def test_the_closest_word_is_suggested_and_no_far_one() -> None:
    assert did_you_mean("batchsize", ["batch_size", "name"]) == " Did you mean 'batch_size'?"
    assert did_you_mean("zzz", ["batch_size", "name"]) == ""
    assert did_you_mean("x", iter(())) == ""
