"""The figures that a run has logged, as its CSV files hold them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path


def whole_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a file of figures, without those that a kill or a full disk has cut short."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines()
    for row in csv.DictReader(lines, restkey=""):
        is_cut = "" in row or None in row.values()
        if not is_cut and row.get("step", "").isdecimal() and all(_is_number(value) for value in row.values()):
            yield row


def _is_number(text: str) -> bool:
    try:
        float(text or 0)
    except ValueError:
        return False
    return True
