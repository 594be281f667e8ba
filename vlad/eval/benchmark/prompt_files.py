"""Prompt files in the formats of the benchmarks.

LINES.txt    a prompt a line (MARIO-Eval, DrawBench, GlyphControl), or a word a line (GlyphControl's raw lists)
TABLE.tsv    with a column Prompt, prompt or caption (PartiPrompts); .csv alike
FILE.json    {"data_list": [{"img_name", "caption", "annotations"}]}       AnyText, polygons in a frame of 512 x 512
             {"data_list": [{"index", "prompt", "sentence_list"?}]}         CVTG-2K
             [{"image_path", "prompt", "raw_text", "original_image_path"?}]  TextAtlasEval
FILE.jsonl   {"prompt_id", "prompt", "text"}                                LongText-Bench
             {"id", "prompt", "lines": [...], "subset"?, "reference"?}      vlad make-benchmark
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlad.data.importers.anyword import FRAME_PIXELS
from vlad.data.importers.sources import UnusableEntry, from_top_left, points_of
from vlad.eval.protocols.protocol import BenchmarkPrompt
from vlad.layout.layout_files import layout_from_json
from vlad.models.text_encoder.prompt import LINE_BREAKS, find_quotes
from vlad.types import TextLine
from vlad.utils.errors import UserError
from vlad.utils.paths import existing_file
from vlad.utils.text_lines import split_lines

ACCEPTED = (
    "a text file with a prompt (or a word) on each line; .tsv or .csv with a column named prompt;"
    ' the JSON of AnyText or CVTG-2K with a "data_list"; that of TextAtlasEval, a list with "prompt" and "raw_text";'
    ' the .jsonl of LongText-Bench with "prompt" and "text"; the .jsonl of vlad make-benchmark'
)
WORD_TEMPLATE = 'A sign that says "{}".'  # SimpleBench's prompt of a word
_UNSAFE = re.compile(r"[^\w.-]+")
Record = dict[str, Any]


def read_prompt_files(paths: Sequence[Path | str]) -> list[BenchmarkPrompt]:
    """The prompts of all files, each file's name as the subset where there are several.

    Raises UserError, with the file and the entry, for an unknown format.
    """
    prompts: list[BenchmarkPrompt] = []
    files = list(map(Path, paths))
    # CVTG-2K has two folders with a 2.json.
    names = [file.stem for file in files]
    if len(set(names)) < len(names):
        names = [f"{file.resolve().parent.name}-{file.stem}" for file in files]
    for file, name in zip(files, names, strict=True):
        found = _read_file(file)
        if len(files) > 1:
            found = [replace(prompt, key=safe_name(f"{name}-{prompt.key}"), subset=name) for prompt in found]
        prompts += found
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.key in seen:
            raise UserError(
                f"Two prompts have the same id {prompt.key!r}, which names their images; make the ids unique."
            )
        seen.add(prompt.key)
    return prompts


def safe_name(text: str) -> str:
    """A file name that every file system takes."""
    return _UNSAFE.sub("-", text).strip("-.") or "-"


def quoted(prompt: str) -> tuple[str, ...]:
    """The prompt's quoted strings, with spaces for newlines; unclosed marks quote nothing."""
    return tuple(" ".join(LINE_BREAKS.split(quote.text)) for quote in find_quotes(prompt, strict=False))


def _read_file(path: Path) -> list[BenchmarkPrompt]:
    path = existing_file(path, "prompt file", "name one of your benchmark's")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a prompt file: it is not UTF-8 text.") from error
    suffix = path.suffix.lower()
    try:
        if suffix == ".json":
            found = list(_of_json(json.loads(text)))
        elif suffix in (".jsonl", ".ndjson"):
            found = list(_of_json_lines(text))
        elif suffix in (".tsv", ".csv"):
            found = list(_of_table(text, "\t" if suffix == ".tsv" else ","))
        else:
            found = _of_lines(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}.") from error
    except (UnusableEntry, ValueError, RecursionError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is in no known format: {error}. Accepted: {ACCEPTED}.") from error
    if not found:
        raise UserError(f"{path} holds no prompt; name another file.")
    # References are relative to the prompt file.
    return [
        prompt if prompt.reference is None else replace(prompt, reference=str(path.parent / prompt.reference))
        for prompt in found
    ]


def _of_lines(text: str) -> list[BenchmarkPrompt]:
    lines = [line.strip() for line in split_lines(text)]
    lines = [line for line in lines if line]
    # A list of words; prompts of scripts without spaces have quotations.
    if not any(quoted(line) or any(character.isspace() for character in line) for line in lines):
        lines = [WORD_TEMPLATE.format(line) for line in lines]
    return [BenchmarkPrompt(str(number), line, quoted(line)) for number, line in enumerate(lines)]


def _of_table(text: str, delimiter: str) -> Iterator[BenchmarkPrompt]:
    rows = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    names = [name for name in rows.fieldnames or () if name and name.strip().lower() in ("prompt", "caption")]
    if not names:
        raise ValueError(f"no column is named prompt or caption (the first line is {rows.fieldnames})")
    for number, row in enumerate(rows):
        prompt = (row[names[0]] or "").strip()
        if not prompt:
            raise ValueError(f"row {number + 1} has no prompt")
        yield BenchmarkPrompt(str(number), prompt, quoted(prompt), subset=(row.get("Category") or "").strip())


def _of_json_lines(text: str) -> Iterator[BenchmarkPrompt]:
    # Not splitlines: strings may hold other line separators (U+2028).
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not JSON: column {error.colno}: {error.msg}") from error
        yield _numbered(f"line {number}", _of_record, record, number - 1)


def _of_json(content: Any) -> Iterator[BenchmarkPrompt]:
    reader: Callable[[Record, int], BenchmarkPrompt] = _of_record
    if isinstance(content, dict) and isinstance(content.get("data_list"), list):
        records = content["data_list"]
        if records and isinstance(records[0], dict) and "annotations" in records[0]:
            reader = _of_anytext
    elif isinstance(content, list):
        records = content
    else:
        raise ValueError('the JSON is neither a list nor an object with a "data_list"')
    for number, record in enumerate(records):
        yield _numbered(f"entry {number + 1}", reader, record, number)


def _numbered(
    place: str, reader: Callable[[Record, int], BenchmarkPrompt], record: Any, number: int
) -> BenchmarkPrompt:
    """The record's prompt. Raises ValueError with the record's place."""
    if not isinstance(record, dict):
        raise ValueError(f"{place} is no object")
    try:
        return reader(record, number)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _of_anytext(record: Record, number: int) -> BenchmarkPrompt:
    """The caption lacks the strings; they are appended to it, as in the benchmark's own prompts."""
    caption = _string(record, "caption")
    annotations = record.get("annotations")
    if not isinstance(annotations, list) or not all(isinstance(annotation, dict) for annotation in annotations):
        raise ValueError('"annotations" is no list of objects')
    width, height = FRAME_PIXELS
    lines = []
    for annotation in annotations:
        points = from_top_left(points_of(annotation.get("polygon"), "polygon"))
        lines.append(
            TextLine(
                _string(annotation, "text"),
                tuple((x / width, y / height) for x, y in points),
                language=annotation.get("language"),
                valid=annotation.get("valid", True) is not False,
            )
        )
    strings = tuple(line.text for line in lines if line.valid and line.text.strip())
    missing = [text for text in strings if text not in quoted(caption)]
    prompt = caption + (", that reads " + " and ".join(f'"{text}"' for text in missing) if missing else "")
    return BenchmarkPrompt(_key(record, ("img_name",), number), prompt, strings, tuple(lines))


def _of_record(record: Record, number: int) -> BenchmarkPrompt:
    """An object with a prompt, and with its target texts under the benchmark's own name."""
    prompt = _string(record, "prompt")
    key = _key(record, ("id", "prompt_id", "index", "image_path"), number)
    subset = str(record.get("subset") or record.get("category") or "")
    lines: tuple[TextLine, ...] = ()
    if "lines" in record:
        lines = layout_from_json({"lines": record["lines"]}).lines
        strings = tuple(line.text for line in lines if line.valid)
    else:
        named = next((name for name in ("raw_text", "sentence_list", "text") if record.get(name) is not None), None)
        strings = quoted(prompt) if named is None else _strings(record, named)
    reference = record.get("reference") or record.get("original_image_path")
    return BenchmarkPrompt(key, prompt, strings, lines, subset, reference if isinstance(reference, str) else None)


def _key(record: Record, names: Sequence[str], number: int) -> str:
    """The record's own id, or its number; of file names, the stem."""
    for name in names:
        if isinstance(record.get(name), str | int) and str(record[name]).strip():
            value = str(record[name])
            return safe_name(Path(value).stem if name in ("img_name", "image_path") else value)
    return str(number)


def _string(record: Record, name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or (name != "text" and not value.strip()):
        raise ValueError(f'there is no string "{name}" (it has {", ".join(map(repr, record)) or "nothing"})')
    return value


def _strings(record: Record, name: str) -> tuple[str, ...]:
    value = record[name]
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise ValueError(f'"{name}" is neither a string nor a list of strings')
    return tuple(values)
