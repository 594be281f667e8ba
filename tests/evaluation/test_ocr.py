"""The OCR seam, held against rapidocr itself on rendered signs."""

import io
import re
import sys
from importlib import metadata

import numpy as np
import pytest
from PIL import Image
from rapidocr import RapidOCR

from vlad.data.synthetic import SyntheticOptions, render_sign
from vlad.data.words import held_out_words
from vlad.errors import UserError
from vlad.evaluation.ocr import build_engine, enlarge, read_many
from vlad.evaluation.spelling import letter_accuracy, reads_exactly
from vlad.layout.polygons import box_iou, box_polygon

SIGNS = [render_sign(SyntheticOptions(seed=5), index, held_out_words()) for index in range(6)]
WANTED = [[line.text for line in sign.layout.lines] for sign in SIGNS]


@pytest.fixture(scope="module")
def engine():
    return build_engine("rapidocr")


@pytest.fixture(scope="module")
def readings():
    return list(read_many("rapidocr", [sign.picture for sign in SIGNS], workers=1))


def test_rendered_signs_are_read_right(readings):
    assert sum(map(reads_exactly, readings, WANTED)) >= len(SIGNS) - 1
    assert letter_accuracy(readings, WANTED) > 0.95


def test_lines_stand_where_they_were_drawn(readings):
    for lines, sign in zip(readings, SIGNS, strict=True):
        for line in lines:
            assert 0.5 < line.confidence <= 1
            assert all(0 <= value <= 1 for point in line.polygon for value in point)
            # The engine draws its boxes wider than the ink.
            assert box_iou(line.polygon, sign.layout.lines[0].polygon) > 0.4


def test_many_threads_read_what_one_does(readings):
    done = []
    pictures = (sign.picture for sign in SIGNS)  # any iterable
    assert list(read_many("rapidocr", pictures, workers=2, on_progress=done.append)) == readings
    assert done == [1, 2, 3, 4, 5, 6]


def test_the_engine_is_rapidocr_as_it_ships(engine, readings):
    """Read by rapidocr itself, all settings its own, from a file as a user would."""
    buffer = io.BytesIO()
    Image.fromarray(enlarge(SIGNS[0].picture)).save(buffer, "PNG")
    result = RapidOCR()(buffer.getvalue())
    assert tuple(line.text for line in readings[0]) == result.txts
    assert [line.confidence for line in readings[0]] == pytest.approx(list(result.scores), abs=1e-4)


def test_the_name_holds_the_version(engine):
    assert engine.name == f"rapidocr {metadata.version('rapidocr')}"
    assert re.fullmatch(r"rapidocr \d+\.\d+\.\d+", engine.name)


@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (3, 200)])
def test_a_picture_without_text_gives_no_lines(engine, shape):
    assert engine.read(np.full((*shape, 3), 128, dtype=np.uint8)) == ()


def test_the_engine_is_quiet(engine, capfd):
    engine.read(np.zeros((64, 64, 3), dtype=np.uint8))
    assert capfd.readouterr() == ("", "")


def test_lower_confidence_lets_more_lines_through(engine):
    faint = np.random.default_rng(0).normal(0, 60, (256, 256, 1)) + enlarge(SIGNS[0].picture)
    noisy = faint.clip(0, 255).astype(np.uint8)
    everything = build_engine("rapidocr", least_confidence=0.0).read(noisy)
    assert set(engine.read(noisy)) <= set(everything)


def test_enlarging_multiplies_both_sides_and_keeps_flat_colours():
    picture = np.full((5, 7, 3), (1, 100, 255), dtype=np.uint8)
    assert enlarge(picture).shape == (20, 28, 3)
    assert (enlarge(picture, 3) == (1, 100, 255)).all()
    assert enlarge(picture, 1) is picture


def test_an_unknown_engine_is_named_with_a_suggestion():
    with pytest.raises(UserError, match=r"no OCR engine 'rapidorc'\. Did you mean 'rapidocr'\?"):
        build_engine("rapidorc")


def test_an_engine_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(UserError, match="pip install rapidocr"):
        build_engine("rapidocr")


def test_polygons_are_shares_of_the_picture(engine):
    """A word in the right half of a wide picture."""
    sign = render_sign(SyntheticOptions(size_pixels=256, ground_share=0.0), 3, ("GARDEN",))
    wide = np.concatenate([np.broadcast_to(sign.picture[:1, :1], sign.picture.shape), sign.picture], axis=1)
    (line,) = engine.read(wide)
    left, top, right, bottom = sign.layout.lines[0].polygon[0] + sign.layout.lines[0].polygon[2]
    assert line.text == "GARDEN"
    assert box_iou(line.polygon, box_polygon(0.5 + left / 2, top, 0.5 + right / 2, bottom)) > 0.5
