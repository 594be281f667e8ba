"""What is asked of an image beside its prompt: prompts with something swapped, other wordings, zero-shot tasks.

{"id", "prompt", "subset", "swapped": [{"kind", "prompt"}], "same": [text],
 "zero_shot": [{"task", "answer", "templates": [text with {}]}]}                   a record of alignment.jsonl
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlad.eval.benchmark.prompt_files import safe_name
from vlad.utils.errors import UserError
from vlad.utils.paths import existing_file


@dataclass(frozen=True)
class Swapped:
    """A prompt that the image does not show, and what was swapped in it: "order", "colours", "count"."""

    kind: str
    prompt: str


@dataclass(frozen=True)
class ZeroShot:
    """What the image shows of a task ("word", "colour"), and the texts with {} in which the answer is put."""

    task: str
    answer: str
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """What is asked of an image beside its prompt."""

    swapped: tuple[Swapped, ...] = ()
    same: tuple[str, ...] = ()
    zero_shot: tuple[ZeroShot, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields of a prompt file's record; a question that is not asked has none."""
        found: dict[str, Any] = {}
        if self.swapped:
            found["swapped"] = [{"kind": swapped.kind, "prompt": swapped.prompt} for swapped in self.swapped]
        if self.same:
            found["same"] = list(self.same)
        if self.zero_shot:
            found["zero_shot"] = [
                {"task": one.task, "answer": one.answer, "templates": list(one.templates)} for one in self.zero_shot
            ]
        return found


@dataclass(frozen=True)
class Entry:
    """A prompt of a subset with what is asked of its image."""

    key: str
    subset: str
    prompt: str
    asked: Asked


def entry_of(record: Mapping[str, Any], key: str) -> Entry | None:
    """A record of a prompt file, None where it asks nothing. Raises ValueError for one that is no such record."""
    fields = ("swapped", "same", "zero_shot")
    if not any(record.get(name) for name in fields):
        return None
    try:
        swapped = tuple(Swapped(str(one["kind"]), _text(one["prompt"])) for one in record.get("swapped", ()))
        same = tuple(map(_text, record.get("same", ())))
        zero_shot = tuple(
            ZeroShot(str(one["task"]), _text(one["answer"]), tuple(map(_text, one["templates"])))
            for one in record.get("zero_shot", ())
        )
    except (TypeError, KeyError) as error:
        raise ValueError(
            'what is asked is not {"swapped": [{"kind", "prompt"}], "same": [text], "zero_shot": [{"task", "answer",'
            f' "templates": [text with {{}}]}}]}} ({error!r})'
        ) from error
    if any(template.count("{}") != 1 for one in zero_shot for template in one.templates) or any(
        not one.templates for one in zero_shot
    ):
        raise ValueError("a zero-shot task needs templates with one {} each, where the answer is put")
    return Entry(key, str(record.get("subset") or ""), _text(record.get("prompt")), Asked(swapped, same, zero_shot))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"{value!r} is no text")
    return value


def read_entries(path: Path) -> list[Entry]:
    """The prompts of a .jsonl file that ask something, with ids as `read_prompt_files` gives them.

    Raises UserError for a line that is no such record, and where nothing is asked.
    """
    text = existing_file(path, "prompt file", "name the benchmark's alignment.jsonl").read_text(encoding="utf-8")
    entries: list[Entry] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            entry = entry_of(record, safe_name(str(record["id"])))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}, line {number} is no record of an alignment.jsonl: {error}; make one with"
                " tools/make_benchmark.py."
            ) from error
        if entry is not None:
            entries.append(entry)
    if not entries:
        raise UserError(
            f"{path} asks nothing of an encoder; name the alignment.jsonl that tools/make_benchmark.py writes."
        )
    return entries
