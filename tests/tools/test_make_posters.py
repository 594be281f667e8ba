"""Posters of one template: as many as asked for, the same every time, all in one style and readable."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlad.data.poster_template import CORAL, CREAM, poster_words, render_poster
from vlad.data.words import held_out_words
from vlad.metrics.ocr import run_ocr
from vlad.metrics.spelling import word_accuracy

ROOT = Path(__file__).resolve().parents[2]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/make_posters.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_folder_of_posters_with_their_captions(tmp_path: Path) -> None:
    done = call(str(tmp_path / "posters"), "--count", "3", "--seed", "4")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "posters").glob("*.png"))) == 3
    for index in range(3):
        wanted = render_poster(index, seed=4)
        with Image.open(tmp_path / "posters" / f"{wanted.key}.png") as image:
            assert np.array_equal(np.asarray(image), wanted.image)
        caption = (tmp_path / "posters" / f"{wanted.key}.txt").read_text(encoding="utf-8")
        assert caption == f'a poster that says "{wanted.layout.lines[0].text}"\n'
    again = call(str(tmp_path / "posters"))
    assert (again.returncode, "holds files already" in again.stderr) == (2, True)


@pytest.mark.parametrize("wrong", [["--count", "0"], ["--size-pixels", "8"], ["--seed", "-1"]])
def test_impossible_posters_are_refused(wrong: list[str], tmp_path: Path) -> None:
    done = call(str(tmp_path / "posters"), *wrong)
    assert done.returncode == 2
    assert "--count must be from 1" in done.stderr
    assert not (tmp_path / "posters").exists()


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
