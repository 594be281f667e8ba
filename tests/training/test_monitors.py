"""What is looked at while a stage trains."""

import numpy as np
import pytest

from vlad.data.options import SyntheticOptions
from vlad.data.signs import render_sign
from vlad.data.words import held_out_words
from vlad.training.callbacks.monitors import _spelled


def test_grids_are_read_as_evaluations_read() -> None:
    signs = [render_sign(SyntheticOptions(seed=4, ground_share=0.0), n, held_out_words()) for n in range(3)]
    wanted = [[line.text for line in sign.layout.lines] for sign in signs]
    images = [sign.image for sign in signs]
    found = _spelled(images, wanted)
    assert found == {"grid_word_accuracy": 1, "grid_letter_accuracy": 1}
    # An image without letters where some are wanted, and one that is to hold none, which does not count.
    blank = np.full_like(images[0], 128)
    found = _spelled([images[0], blank, blank], [wanted[0], wanted[1], []])
    letters = [len("".join(strings)) for strings in wanted]
    assert found["grid_word_accuracy"] == 0.5
    assert found["grid_letter_accuracy"] == pytest.approx(letters[0] / (letters[0] + letters[1]))
    assert _spelled([blank], [[]]) == {}
