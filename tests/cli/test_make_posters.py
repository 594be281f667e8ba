"""make_posters as a user calls it: a folder of posters with their captions."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlad.data.poster_template import render_poster

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
    assert wrong[0] in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "posters").exists()
