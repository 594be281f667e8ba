"""Nothing that comes from a file moves a terminal's cursor, turns a text around, or runs in a page."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from vlad.reports.run_report import write_run_report
from vlad.utils.command_line import run_command_line
from vlad.utils.errors import UserError
from vlad.utils.foreign_text import printable, printable_line
from vlad.utils.html import render

HOSTILE = [
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "\x1b[2J\x1b[A",
    "\x9b31m",
    "a\rerror: none",
    "a\x08\x08b",
    "\u202egnp.exe",
    "\u2066a\u2069",
    "\u200fa",
    "a\u2028b",
    "\udc80",
    "\x00",
    "\x7f",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_is_printed_is_safe(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        print(f"reads {text} there")
        print("a", text, file=sys.stderr)
        tqdm.write(f"warning: {text} there", file=sys.stderr)
        raise UserError(f"{text} is no image.")

    with pytest.raises(SystemExit):
        run_command_line(main)
    out, error = capsys.readouterr()
    for shown in (out, error, render("{{ text }}", text=text), printable_line(text)):
        assert not [c for c in shown.replace("\n", "") if not c.isprintable()]
    assert printable(text).replace("\n", "\\n") in out


def test_words_of_all_scripts_stay_and_long_lines_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    text = "کتاب‌ها हिन्दी 日本 👩‍🚀 é\tx\n'q'"
    assert printable(text) == text
    assert printable_line("a\nb\t") == "a\\nb\\t"
    with pytest.raises(SystemExit):
        run_command_line(lambda: print("x" * 1_000_000, "\nshort"))
    out = capsys.readouterr().out
    assert len(out) < 10_000
    assert out.endswith("short\n")


def test_progress_bars_keep_their_moves(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        for _ in tqdm(range(2), position=1, mininterval=0, ascii=True):
            pass

    with pytest.raises(SystemExit):
        run_command_line(main)
    error = capsys.readouterr().err
    assert "\x1b[A" in error
    assert "\r100%" in error


def test_names_of_grids_run_nothing_in_the_report(tmp_path: Path) -> None:
    logs = tmp_path / "refine" / "logs" / "from-step-00000000"
    logs.mkdir(parents=True)
    (logs / "metrics.csv").write_text("step,loss\n0,1\n")
    grids = tmp_path / "samples" / "refine"
    grids.mkdir(parents=True)
    (grids / "step-<img src=x onerror=alert(1)>\u202e.png").write_bytes(b"x")
    page = write_run_report(tmp_path).read_text(encoding="utf-8")
    assert "step-&lt;img" in page
    assert "<img src=x" not in page
    assert "\u202e" not in page
    assert "default-src 'none'" in page
