"""Prompts of the alignment benchmark with their hard negatives, paraphrases and zero-shot tasks.

A record of alignment.jsonl:
{"id", "prompt", "subset", "swapped": [{"kind", "prompt"}], "same": [text],
 "zero_shot": [{"task", "answer", "templates": [text with {}]}]}
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
from vlad.utils.text_lines import split_lines


@dataclass(frozen=True)
class HardNegative:
    """A prompt that the image does not show; `kind` says what differs: "order", "colours", "count"."""

    kind: str
    prompt: str


@dataclass(frozen=True)
class ZeroShotTask:
    """The image's class ("answer") of a task ("word", "colour"), and templates with {} in its place."""

    task: str
    answer: str
    templates: tuple[str, ...]


@dataclass(frozen=True)
class AlignmentTexts:
    """The texts that an image is compared with beside its prompt."""

    negatives: tuple[HardNegative, ...] = ()
    paraphrases: tuple[str, ...] = ()
    zero_shot: tuple[ZeroShotTask, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields of a prompt file's record; empty ones are left out."""
        fields: dict[str, Any] = {
            "swapped": [{"kind": negative.kind, "prompt": negative.prompt} for negative in self.negatives],
            "same": list(self.paraphrases),
            "zero_shot": [
                {"task": task.task, "answer": task.answer, "templates": list(task.templates)} for task in self.zero_shot
            ],
        }
        return {name: values for name, values in fields.items() if values}


@dataclass(frozen=True)
class AlignmentPrompt:
    """A prompt of a subset with the other texts that its image is compared with."""

    key: str
    subset: str
    prompt: str
    texts: AlignmentTexts


def alignment_prompt_of(record: Mapping[str, Any], key: str) -> AlignmentPrompt | None:
    """The prompt of a prompt file's record; None where it has no alignment texts. Raises ValueError for bad ones."""
    fields = ("swapped", "same", "zero_shot")
    if not any(record.get(name) for name in fields):
        return None
    try:
        negatives = tuple(HardNegative(str(one["kind"]), _text(one["prompt"])) for one in record.get("swapped", ()))
        paraphrases = tuple(map(_text, record.get("same", ())))
        zero_shot = tuple(
            ZeroShotTask(str(one["task"]), _text(one["answer"]), tuple(map(_text, one["templates"])))
            for one in record.get("zero_shot", ())
        )
    except (TypeError, KeyError) as error:
        raise ValueError(
            'its texts are not {"swapped": [{"kind", "prompt"}], "same": [text], "zero_shot": [{"task", "answer",'
            f' "templates": [text with {{}}]}}]}} ({error!r})'
        ) from error
    if any(not task.templates or any(text.count("{}") != 1 for text in task.templates) for task in zero_shot):
        raise ValueError("a zero-shot task needs templates with one {} each, the answer's place")
    texts = AlignmentTexts(negatives, paraphrases, zero_shot)
    return AlignmentPrompt(key, str(record.get("subset") or ""), _text(record.get("prompt")), texts)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"{value!r} is no text")
    return value


def read_alignment_prompts(path: Path) -> list[AlignmentPrompt]:
    """The prompts of a .jsonl file that have alignment texts, with ids as `read_prompt_files` gives them.

    Raises UserError for a line that is no such record, and where no prompt has such texts.
    """
    text = existing_file(path, "prompt file", "name the benchmark's alignment.jsonl").read_text(encoding="utf-8")
    prompts: list[AlignmentPrompt] = []
    for number, line in enumerate(split_lines(text), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            prompt = alignment_prompt_of(record, safe_name(str(record["id"])))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}, line {number} is no record of an alignment.jsonl: {error}; make one with vlad make-benchmark."
            ) from error
        if prompt is not None:
            prompts.append(prompt)
    if not prompts:
        raise UserError(
            f"{path} holds no texts to compare images with; name the alignment.jsonl that vlad make-benchmark writes."
        )
    return prompts
