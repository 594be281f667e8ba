"""What is asked for: prompts with their seeds and layouts, from the command line, files and standard input.

A text file has a prompt on each line. A JSONL file has an object on each line:

    {"prompt": "a sign that says \"HI\"", "seeds": "0-3", "layout": "hi.json"}

`seed` or `seeds` (a number, a list, or a range as on the command line) and `layout` (an object as in a layout file, or
the path of one, from the JSONL file's folder) may be left out.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlad.layout.layout_files import check_layout, layout_from_json, read_layout
from vlad.types import Layout
from vlad.utils.errors import UserError, did_you_mean, sentence
from vlad.utils.paths import existing_file

FIELDS = ("prompt", "seed", "seeds", "layout")
MOST_SEEDS = 100_000
EMPTY = "The line is empty; write a prompt, or take the line out."


@dataclass(frozen=True)
class Request:
    """One prompt. `place` says where it stands, for messages; without `seeds` or `layout` it takes the call's."""

    prompt: str
    place: str
    seeds: tuple[int, ...] | None = None
    layout: Layout | None = None


@dataclass(frozen=True)
class Refusal:
    """A line that asks for nothing that can be drawn, and why."""

    place: str
    reason: str


def parse_seeds(text: str, place: str = "") -> tuple[int, ...]:
    """Seeds as people write them: "7", "0-9", "1,5,8-10". Raises UserError for what is none; `place` begins it."""
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None or len(part) > 60:
            raise UserError(
                f"{place}{text[:60]!r} are no seeds; write a number from 0, or several like 0-9 or 1,5,8-10."
            )
        first = int(match.group(1))
        last = int(match.group(2)) if match.group(2) else first
        if last < first or last >= 2**62 or len(seeds) + last - first >= MOST_SEEDS:
            raise UserError(f"{place}The seeds {text[:60]!r} must rise, lie under 2**62, and be {MOST_SEEDS} at most.")
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return tuple(seeds)


def read_requests(prompts: Sequence[str], files: Sequence[str]) -> list[Request | Refusal]:
    """The prompts of the command line, then those of the files ("-" is standard input), in their order.

    An empty line between those of a text file and a bad line of a JSONL file come as a Refusal each. Raises UserError
    for a file that is none, and when nothing is asked for.
    """
    found: list[Request | Refusal] = [Request(prompt, "--prompt") for prompt in prompts]
    for name in files:
        found += _read_file(name)
    if not found:
        raise UserError(
            "There is nothing to draw; give --prompt 'a blue sign that says \"HOUSE\"' or --prompts FILE (- for"
            " standard input)."
        )
    return found


def _read_file(name: str) -> list[Request | Refusal]:
    path = None if name == "-" else existing_file(name, "prompt file", "write one with a prompt on each line")
    shown = "standard input" if path is None else str(path)
    data = sys.stdin.buffer.read() if path is None else path.read_bytes()
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{shown} is not a prompt file: it is not UTF-8 text; save it as such.") from error
    folder = Path() if path is None else path.parent
    is_json = (
        path.suffix in (".jsonl", ".ndjson")
        if path is not None
        else next((line for line in lines if line.strip()), "").lstrip().startswith("{")
    )
    found: list[Request | Refusal] = []
    found += _json_lines(lines, shown, folder) if is_json else _text_lines(lines, shown)
    if not found:
        raise UserError(f"{shown} holds no prompt; write one on each line.")
    return found


def _text_lines(lines: Sequence[str], shown: str) -> Iterator[Request | Refusal]:
    last = max((number for number, line in enumerate(lines, start=1) if line.strip()), default=0)
    for number, line in enumerate(lines[:last], start=1):
        place = f"{shown}, line {number}"
        yield Request(line.strip(), place) if line.strip() else Refusal(place, EMPTY)


def _json_lines(lines: Sequence[str], shown: str, folder: Path) -> Iterator[Request | Refusal]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{shown}, line {number}"
        try:
            yield _request_from_json(json.loads(line), place, folder)
        except UserError as error:
            yield Refusal(place, str(error)[:500])
        except (ValueError, RecursionError) as error:
            yield Refusal(place, f'It is no JSON ({str(error)[:200]}); write an object like {{"prompt": "a sign"}}.')


def _request_from_json(record: Any, place: str, folder: Path) -> Request:
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise UserError('It is not an object with a "prompt"; write one like {"prompt": "a sign"}.')
    for name in record:
        if name not in FIELDS:
            raise UserError(f"It has an unknown field {name!r}.{did_you_mean(name, FIELDS)}")
    seeds = record.get("seeds", record.get("seed"))
    return Request(record["prompt"], place, _seeds_from_json(seeds), _layout_from_json(record.get("layout"), folder))


def _seeds_from_json(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    if isinstance(value, list):
        return parse_seeds(",".join(map(str, value)))
    return parse_seeds(str(value))


def _layout_from_json(value: Any, folder: Path) -> Layout | None:
    if value is None:
        return None
    if isinstance(value, str):
        return read_layout(folder / value)
    try:
        layout = layout_from_json(value)
    except ValueError as error:
        raise UserError(f"Its layout cannot be read: {sentence(error)}") from error
    check_layout(layout, "Its layout")
    return layout
