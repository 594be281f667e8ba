"""starts.jsonl: the command, code and machine of every start of a run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlad.utils.json_objects import parse_object
from vlad.utils.text_lines import split_lines

STARTS = "starts.jsonl"


def read_starts(directory: Path) -> list[dict[str, Any]]:
    """All starts of a run, without lines that a kill or a full disk has cut short."""
    path = directory / STARTS
    found = []
    for line in split_lines(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else []:
        with contextlib.suppress(ValueError):
            found.append(parse_object(line))
    return found


def record_start(directory: Path, facts: Mapping[str, Any]) -> None:
    """Adds a line to starts.jsonl, on a line of its own even after one that was cut short."""
    path = directory / STARTS
    cut = path.is_file() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as stream:
        stream.write("\n" * cut + json.dumps(facts, ensure_ascii=False) + "\n")


def changes_since_last_start(directory: Path, facts: Mapping[str, Any]) -> list[str]:
    """What differs from the last start and may change results, each as "name: before -> now"."""
    starts = read_starts(directory)
    if not starts:
        return []
    before, now = _reproducibility_facts(starts[-1]), _reproducibility_facts(facts)
    names = [name for name in now if name in before and before[name] != now[name]]
    return [f"{name}: {before[name]} -> {now[name]}" for name in names]


def _reproducibility_facts(facts: Mapping[str, Any]) -> dict[str, str]:
    """The facts that results depend on, with one entry for each library's version."""
    found = {name: str(facts[name]) for name in ("revision", "python", "device", "attention") if name in facts}
    versions = (entry.rpartition(" ") for entry in str(facts.get("versions", "")).split(", "))
    return found | {name: version for name, _, version in versions if name}
