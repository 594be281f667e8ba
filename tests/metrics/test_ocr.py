"""OCR engines: rapidocr against the library itself, the others against recorded answers, on rendered signs."""

import io
import re
import shutil
import sys
import types
from importlib import metadata

import numpy as np
import pytest
from PIL import Image
from rapidocr import RapidOCR

from vlad.data.options import SyntheticOptions
from vlad.data.signs import render_sign
from vlad.data.words import held_out_words
from vlad.layout.polygons import bounding_box, box_polygon, polygon_iou
from vlad.metrics.ocr import build_ocr_engine, enlarge, run_ocr
from vlad.metrics.spelling import letter_accuracy, spells_exactly
from vlad.utils.errors import UserError

SIGNS = [render_sign(SyntheticOptions(seed=5), index, held_out_words()) for index in range(6)]
WANTED = [[line.text for line in sign.layout.lines] for sign in SIGNS]


@pytest.fixture(scope="module")
def engine():
    return build_ocr_engine("rapidocr")


@pytest.fixture(scope="module")
def readings():
    return list(run_ocr("rapidocr", [sign.image for sign in SIGNS], workers=1))


def test_rendered_signs_are_read_correctly(readings):
    assert sum(map(spells_exactly, readings, WANTED)) >= len(SIGNS) - 1
    assert letter_accuracy(readings, WANTED) > 0.95


def test_lines_are_found_where_they_were_rendered(readings):
    for lines, sign in zip(readings, SIGNS, strict=True):
        for line in lines:
            assert 0.5 < line.confidence <= 1
            assert all(0 <= value <= 1 for point in line.polygon for value in point)
            # The engine draws its boxes wider than the ink.
            assert polygon_iou(line.polygon, sign.layout.lines[0].polygon) > 0.4


def test_results_do_not_depend_on_the_number_of_threads(readings):
    done = []
    images = (sign.image for sign in SIGNS)  # any iterable
    assert list(run_ocr("rapidocr", images, workers=2, on_progress=done.append)) == readings
    assert done == [1, 2, 3, 4, 5, 6]


def test_rapidocr_keeps_its_default_settings(engine, readings):
    """Read by rapidocr itself, all settings its own, from a file as a user would."""
    buffer = io.BytesIO()
    Image.fromarray(enlarge(SIGNS[0].image)).save(buffer, "PNG")
    result = RapidOCR()(buffer.getvalue())
    assert tuple(line.text for line in readings[0]) == result.txts
    assert [line.confidence for line in readings[0]] == pytest.approx(list(result.scores), abs=1e-4)


def test_the_name_contains_the_version(engine):
    assert engine.name == f"rapidocr {metadata.version('rapidocr')}"
    assert re.fullmatch(r"rapidocr \d+\.\d+\.\d+", engine.name)


@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (3, 200)])
def test_an_image_without_text_has_no_lines(engine, shape):
    assert engine.read(np.full((*shape, 3), 128, dtype=np.uint8)) == ()


def test_the_engine_is_quiet(engine, capfd):
    engine.read(np.zeros((64, 64, 3), dtype=np.uint8))
    assert capfd.readouterr() == ("", "")


def test_a_lower_min_confidence_keeps_more_lines(engine):
    faint = np.random.default_rng(0).normal(0, 60, (256, 256, 1)) + enlarge(SIGNS[0].image)
    noisy = faint.clip(0, 255).astype(np.uint8)
    everything = build_ocr_engine("rapidocr", min_confidence=0.0).read(noisy)
    assert set(engine.read(noisy)) <= set(everything)


def test_upside_down_text_starts_at_its_own_top_left(engine):
    image = enlarge(SIGNS[0].image)
    (upright,), (turned,) = engine.read(image), engine.read(np.ascontiguousarray(image[::-1, ::-1]))
    assert (turned.text, turned.confidence > 0.9) == (upright.text, True)
    (left, top), (right, _) = turned.polygon[:2]
    assert left > right and top > 1 - upright.polygon[0][1] - 0.1


def test_a_region_that_is_found_and_not_read_is_kept_without_a_threshold(engine, monkeypatch):
    """The recogniser knows no letter there: another script."""
    everything = build_ocr_engine("rapidocr", min_confidence=0.0)
    image = enlarge(SIGNS[0].image)
    (whole,) = everything.read(image)
    for reader in (engine, everything):
        recognise = reader._instance().recognize_txt

        def blank(crops, recognise=recognise):
            found = recognise(crops)
            found.txts = ("",) * len(found.txts)
            return found

        monkeypatch.setattr(reader._instance(), "recognize_txt", blank)
    assert engine.read(image) == ()
    (unread,) = everything.read(image)
    assert (unread.text, unread.confidence, unread.polygon) == ("", 0.0, whole.polygon)


def test_enlarging_multiplies_both_sides_and_keeps_flat_colours():
    image = np.full((5, 7, 3), (1, 100, 255), dtype=np.uint8)
    assert enlarge(image).shape == (20, 28, 3)
    assert (enlarge(image, 3) == (1, 100, 255)).all()
    assert enlarge(image, 1) is image


def test_an_unknown_engine_is_named_with_a_suggestion():
    with pytest.raises(UserError, match=r"no OCR engine 'rapidorc'\. Did you mean 'rapidocr'\?"):
        build_ocr_engine("rapidorc")


def test_a_missing_engine_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(UserError, match="pip install rapidocr"):
        build_ocr_engine("rapidocr")


def test_polygons_are_shares_of_the_image(engine):
    """A word in the right half of a wide image."""
    sign = render_sign(SyntheticOptions(size_pixels=256, ground_share=0.0), 3, ("GARDEN",))
    wide = np.concatenate([np.broadcast_to(sign.image[:1, :1], sign.image.shape), sign.image], axis=1)
    (line,) = engine.read(wide)
    left, top, right, bottom = sign.layout.lines[0].polygon[0] + sign.layout.lines[0].polygon[2]
    assert line.text == "GARDEN"
    assert polygon_iou(line.polygon, box_polygon(0.5 + left / 2, top, 0.5 + right / 2, bottom)) > 0.5


def test_read_line_skips_detection(engine):
    sign = render_sign(SyntheticOptions(size_pixels=256, ground_share=0.0), 3, ("GARDEN",))
    left, top, right, bottom = (round(256 * v) for v in bounding_box(sign.layout.lines[0].polygon))
    crop = sign.image[top:bottom, left:right]
    assert engine.read_line(crop) == "GARDEN"
    assert engine.read_line(np.full((20, 60, 3), 128, dtype=np.uint8)) == ""
    # Whole images are still searched.
    assert [line.text for line in engine.read(sign.image)] == ["GARDEN"]


# PaddleOCR, acted by a module


@pytest.fixture
def paddle(monkeypatch):
    """A paddleocr of the version given, which reads fixed lines and keeps what it was called with."""
    calls = []

    class Reader:
        def __init__(self, **options):
            calls.append(options)

        def predict(self, image):
            calls.append(image)
            box = np.array([[20, 10], [120, 10], [120, 30], [20, 30]])
            return [{"rec_texts": ["Open", "x"], "rec_scores": [0.9, 0.3], "rec_polys": [box, box], "rec_text": "Open"}]

    def install(version="3.2.0"):
        module = types.ModuleType("paddleocr")
        module.PaddleOCR = module.TextRecognition = Reader
        monkeypatch.setitem(sys.modules, "paddleocr", module)
        known = metadata.version
        monkeypatch.setattr(metadata, "version", lambda name: version if name == "paddleocr" else known(name))
        return calls

    return install


def test_paddleocr_s_lines(paddle):
    calls = paddle()
    engine = build_ocr_engine("paddleocr")
    assert engine.name == "paddleocr 3.2.0 (en, no unwarping)"
    image = np.zeros((100, 200, 3), dtype=np.uint8)
    image[..., 0] = 7  # red, which PaddleOCR takes last
    (line,) = engine.read(image)
    assert (line.text, line.confidence) == ("Open", 0.9)
    assert np.allclose(line.polygon, box_polygon(0.1, 0.1, 0.6, 0.3))
    assert calls[0]["use_doc_unwarping"] is False
    assert (calls[1] == image[..., ::-1]).all()
    assert engine.read_line(image) == "Open"
    assert len(build_ocr_engine("paddleocr", min_confidence=0.0).read(image)) == 2


def test_paddleocr_missing_or_old_says_what_to_do(paddle, monkeypatch):
    paddle("2.10.0")
    with pytest.raises(UserError, match=r"version 2\.10\.0; run: pip install 'paddleocr>=3'"):
        build_ocr_engine("paddleocr")
    monkeypatch.setitem(sys.modules, "paddleocr", None)
    with pytest.raises(UserError, match=r"'paddleocr' is not installed .* pip install 'vlad-diffusion\[paddle\]'"):
        build_ocr_engine("paddleocr")


# tesseract, whose program is acted by a script

HEADER = "level page_num block_num par_num line_num word_num left top width height conf text".replace(" ", "\t")


def word(line, left, top, width, height, confidence, text, block=1):
    return "\t".join(map(str, (5, 1, block, 1, line, 1, left, top, width, height, confidence, text)))


@pytest.fixture
def tesseract(tmp_path, monkeypatch):
    """Puts a program of that name first in the path, which answers with the rows given."""

    def install(*rows, languages="eng\nosd", code=0):
        (tmp_path / "rows.tsv").write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
        program = tmp_path / "tesseract"
        program.write_text(
            "#!/bin/sh\n"
            'if [ "$1" = --version ]; then echo "tesseract 9.8.7"; exit; fi\n'
            f'if [ "$1" = --list-langs ]; then printf "List of languages:\\n{languages}\\n"; exit; fi\n'
            f'echo "$@" > {tmp_path}/arguments\ncat > {tmp_path}/image.png\ncat {tmp_path}/rows.tsv\n'
            f'echo "no luck" >&2; exit {code}\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return install


def test_tesseract_s_words_become_lines(tesseract, tmp_path):
    tesseract(
        "\t".join(map(str, (4, 1, 1, 1, 1, 0, 0, 0, 200, 100, -1, ""))),
        word(1, 20, 10, 40, 20, 90.0, '"Open'),
        word(1, 80, 12, 40, 23, 70.0, "now"),
        word(2, 20, 50, 40, 20, 30.0, "x"),
        word(1, 20, 80, 40, 10, 96.5, "日本", block=2),
        word(1, 70, 80, 40, 10, 96.5, " ", block=2),
    )
    image = np.zeros((100, 200, 3), dtype=np.uint8)
    image[5] = (250, 100, 0)
    engine = build_ocr_engine("tesseract")
    assert engine.name == "tesseract 9.8.7 (eng, sparse)"
    first, second = engine.read(image)
    assert (first.text, first.confidence) == ('"Open now', pytest.approx(0.8))
    assert np.allclose(first.polygon, box_polygon(0.1, 0.1, 0.6, 0.35))
    assert second.text == "日本"
    assert (tmp_path / "arguments").read_text() == "stdin stdout -l eng --psm 11 tsv\n"
    assert (np.asarray(Image.open(tmp_path / "image.png")) == image).all()
    assert [line.text for line in build_ocr_engine("tesseract", min_confidence=0.0).read(image)][1] == "x"


def test_tesseract_missing_or_broken_says_what_to_do(tesseract, monkeypatch):
    tesseract(languages="osd")
    with pytest.raises(UserError, match="apt install tesseract-ocr-eng"):
        build_ocr_engine("tesseract")
    tesseract(code=1)
    with pytest.raises(RuntimeError, match="no luck"):
        build_ocr_engine("tesseract").read(np.zeros((8, 8, 3), np.uint8))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"apt install tesseract-ocr; macOS: brew install tesseract"):
        build_ocr_engine("tesseract")


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="the program tesseract is not installed")
def test_tesseract_itself_reads_a_plain_sign():
    sign = render_sign(SyntheticOptions(size_pixels=256, ground_share=0.0), 3, ("GARDEN",))
    (line,) = build_ocr_engine("tesseract").read(sign.image)
    assert line.text == "GARDEN"
    assert polygon_iou(line.polygon, sign.layout.lines[0].polygon) > 0.5
