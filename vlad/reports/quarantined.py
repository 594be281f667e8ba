"""The samples that a run could not use, counted from its quarantine.jsonl."""

from __future__ import annotations

from pathlib import Path

from vlad.utils.json_objects import parse_object
from vlad.utils.passed_over import PassedOver
from vlad.utils.text_lines import split_lines

QUARANTINE = "quarantine.jsonl"


def quarantined(directory: Path) -> PassedOver:
    """The samples that the quarantine of a run lists, by the first words of their reasons; none without one."""
    found = PassedOver()
    path = directory / QUARANTINE
    if not path.is_file():
        return found
    for line in split_lines(path.read_text(encoding="utf-8", errors="replace")):
        try:
            record = parse_object(line)
            found.add(record["reason"].partition(":")[0], f"{record['key']} ({Path(record['shard']).name})")
        except (ValueError, TypeError, KeyError, AttributeError):  # half a line, of a machine that stopped
            continue
    return found
