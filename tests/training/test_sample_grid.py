"""Sample grids while a stage trains."""

import numpy as np
import pytest

from vlad.data.options import SyntheticOptions
from vlad.data.signs import render_sign
from vlad.data.words import held_out_words
from vlad.training.callbacks.sample_grid import grid_accuracy


def test_grids_are_scored_as_evaluations_score() -> None:
    signs = [render_sign(SyntheticOptions(seed=4, ground_share=0.0), n, held_out_words()) for n in range(3)]
    wanted = [[line.text for line in sign.layout.lines] for sign in signs]
    images = [sign.image for sign in signs]
    found = grid_accuracy(images, wanted)
    assert found == {"grid_word_accuracy": 1, "grid_letter_accuracy": 1}
    # An image without letters where some are wanted, and one that is to hold none, which does not count.
    blank = np.full_like(images[0], 128)
    found = grid_accuracy([images[0], blank, blank], [wanted[0], wanted[1], []])
    letters = [len("".join(strings)) for strings in wanted]
    assert found["grid_word_accuracy"] == 0.5
    assert found["grid_letter_accuracy"] == pytest.approx(letters[0] / (letters[0] + letters[1]))
    assert grid_accuracy([blank], [[]]) == {}
