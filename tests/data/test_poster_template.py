"""Posters of one template: in one style, without held-out words, and readable."""

import numpy as np

from vlad.data.poster_template import CORAL, CREAM, poster_words, render_poster
from vlad.data.words import held_out_words
from vlad.metrics.ocr import run_ocr
from vlad.metrics.spelling import word_accuracy


def test_posters_share_their_template_and_can_be_read() -> None:
    posters = [render_poster(index) for index in range(6)]
    assert set(poster_words()).isdisjoint(held_out_words())
    for poster in posters:
        assert np.abs(poster.image[52, 32].astype(int) - CORAL).max() < 16  # the sun
        left, top, right, bottom = *poster.layout.lines[0].polygon[0], *poster.layout.lines[0].polygon[2]
        inside = poster.image[int(top * 64) : int(bottom * 64), int(left * 64) : int(right * 64)].astype(int)
        assert np.abs(inside - CREAM).max(axis=-1).min() < 30  # letters
    readings = list(run_ocr("rapidocr", [poster.image for poster in posters]))
    assert word_accuracy(readings, [[poster.layout.lines[0].text] for poster in posters]) >= 5 / 6
