"""The vocabulary and its split into training and held-out words."""

import hashlib

from vlad.data.words import HELD_OUT_WORDS, all_words, held_out_words, training_words


def test_the_split_covers_all_words_once():
    assert len(held_out_words()) == HELD_OUT_WORDS == 200
    assert set(held_out_words()).isdisjoint(training_words())
    assert sorted(held_out_words() + training_words()) == list(all_words())


def test_words_are_upper_case_ascii_letters_each_once():
    assert len(set(all_words())) == len(all_words()) > 1000
    assert all(word.isascii() and word.isalpha() and word.isupper() for word in all_words())


def test_the_held_out_words_never_change():
    """Published figures depend on these words: another list needs new figures."""
    digest = hashlib.sha256("\n".join(held_out_words()).encode()).hexdigest()
    assert digest == "e823afeccc48258ba85349f5a12d58a2d5ef998f31f1bea30e76691cf3ae850e"


def test_another_seed_holds_out_other_words():
    assert held_out_words(1) != held_out_words(2)
    assert len(held_out_words(1)) == HELD_OUT_WORDS
