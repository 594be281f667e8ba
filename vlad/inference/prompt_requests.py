"""Prompts with their seeds and layouts, from the command line, text and JSONL files, and standard input.

A text file has a prompt on each line. A JSONL file has an object on each line:

    {"prompt": "a sign that says \"HI\"", "seeds": "0-3", "layout": "hi.json"}

Optional are `seed` or `seeds` (a number, a list, or a range as on the command line) and `layout` (an object as in a
layout file, or a path relative to the JSONL file's folder).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlad.inference.options import parse_seeds
from vlad.layout.layout_files import check_layout, layout_from_json, read_layout
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.types import Layout, Prompt
from vlad.utils.errors import UserError, as_sentence, did_you_mean
from vlad.utils.paths import existing_file
from vlad.utils.text_lines import split_lines

FIELDS = ("prompt", "seed", "seeds", "layout")


@dataclass(frozen=True)
class PromptRequest:
    """One prompt to generate images of."""

    prompt: Prompt
    # Where it was given, for messages: "--prompt", or file and line.
    place: str
    # None: those of the call.
    seeds: tuple[int, ...] | None = None
    layout: Layout | None = None


@dataclass(frozen=True)
class RejectedPrompt:
    """A prompt or a line of a file that cannot be used, and why."""

    place: str
    reason: str

    def __str__(self) -> str:
        return self.reason if self.place == "--prompt" else f"{self.place}: {self.reason}"


def read_prompts(prompts: Sequence[str], files: Sequence[str]) -> list[PromptRequest | RejectedPrompt]:
    """The prompts of the command line, then those of the files ("-" is standard input), in their order, parsed.

    Raises UserError for a file that cannot be read, and when no prompt is usable.
    """
    found = [_request(prompt, "--prompt") for prompt in prompts]
    for name in files:
        found += _read_file(name)
    if not found:
        raise UserError(
            "No prompt is given; add --prompt 'a blue sign that says \"HOUSE\"', or --prompts FILE (- for standard"
            " input)."
        )
    rejected = [request for request in found if isinstance(request, RejectedPrompt)]
    if len(rejected) == len(found):
        raise UserError(str(rejected[0]))
    return found


def _request(
    text: str, place: str, seeds: tuple[int, ...] | None = None, layout: Layout | None = None
) -> PromptRequest | RejectedPrompt:
    try:
        return PromptRequest(parse_prompt(text), place, seeds, layout)
    except UserError as error:
        return RejectedPrompt(place, str(error))


def _read_file(name: str) -> list[PromptRequest | RejectedPrompt]:
    path = None if name == "-" else existing_file(name, "prompt file", "write one with a prompt on each line")
    label = "standard input" if path is None else str(path)
    data = sys.stdin.buffer.read() if path is None else path.read_bytes()
    try:
        lines = split_lines(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{label} is not a prompt file: it is not UTF-8 text; save it as such.") from error
    folder = Path() if path is None else path.parent
    is_json = (
        path.suffix in (".jsonl", ".ndjson")
        if path is not None
        else next((line for line in lines if line.strip()), "").lstrip().startswith("{")
    )
    found = list(_json_lines(lines, label, folder) if is_json else _text_lines(lines, label))
    if not found:
        raise UserError(f"{label} holds no prompt; write one on each line.")
    return found


def _text_lines(lines: Sequence[str], label: str) -> Iterator[PromptRequest | RejectedPrompt]:
    last = max((number for number, line in enumerate(lines, start=1) if line.strip()), default=0)
    for number, line in enumerate(lines[:last], start=1):
        place = f"{label}, line {number}"
        if line.strip():
            yield _request(line.strip(), place)
        else:
            yield RejectedPrompt(place, "The line is empty; write a prompt, or remove the line.")


def _json_lines(lines: Sequence[str], label: str, folder: Path) -> Iterator[PromptRequest | RejectedPrompt]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{label}, line {number}"
        try:
            yield _request_from_json(json.loads(line), place, folder)
        except UserError as error:
            yield RejectedPrompt(place, str(error)[:500])
        except (ValueError, RecursionError) as error:
            yield RejectedPrompt(
                place, f'It is no JSON ({str(error)[:200]}); write an object like {{"prompt": "a sign"}}.'
            )


def _request_from_json(record: Any, place: str, folder: Path) -> PromptRequest | RejectedPrompt:
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise UserError('It is not an object with a "prompt"; write one like {"prompt": "a sign"}.')
    for name in record:
        if name not in FIELDS:
            raise UserError(f"It has an unknown field {name!r}.{did_you_mean(name, FIELDS)}")
    seeds = record.get("seeds", record.get("seed"))
    if seeds is not None:
        seeds = parse_seeds(",".join(map(str, seeds)) if isinstance(seeds, list) else str(seeds))
    return _request(record["prompt"], place, seeds, _layout_from_json(record.get("layout"), folder))


def _layout_from_json(value: Any, folder: Path) -> Layout | None:
    if value is None:
        return None
    if isinstance(value, str):
        return read_layout(folder / value)
    try:
        layout = layout_from_json(value)
    except ValueError as error:
        raise UserError(f"Its layout cannot be read: {as_sentence(error)}") from error
    check_layout(layout, "Its layout")
    return layout
