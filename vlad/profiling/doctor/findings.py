"""Findings of the doctor's checks, and the table that shows them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the table: the check's name and result, what it found, and what to do about it."""

    name: str
    level: Level
    found: str
    # A sentence; empty where all is well.
    remedy: str = ""


def table(findings: Sequence[Finding], width: int = 120, name_width: int = 0) -> str:
    """The findings as lines of at most `width` characters; `name_width`: the least width of the names' column."""
    name_width = max(name_width, max((len(finding.name) for finding in findings), default=0))
    lines = []
    for finding in findings:
        text = f"{finding.found}. {finding.remedy}" if finding.remedy else finding.found
        head = f"{finding.level:5}{finding.name:{name_width}}  "
        lines.append(
            textwrap.fill(
                " ".join(text.split()), width, initial_indent=head, subsequent_indent=" " * len(head),
                break_long_words=False, break_on_hyphens=False,
            )
        )  # fmt: skip
    return "\n".join(lines)


def exit_code(findings: Sequence[Finding]) -> int:
    """1 where a check has failed, else 0."""
    return int(any(finding.level == "fail" for finding in findings))
