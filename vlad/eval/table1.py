"""Table I: every entry of configs/eval/ scored by MARIO-Eval, beside the published figures.

configs/eval/*.yaml --> run_benchmark --> OUT/ROW/ --> a row; one without its models names what is missing
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlad.eval.benchmark.evaluator import Evaluation
from vlad.eval.benchmark.prompt_files import read_prompt_files
from vlad.eval.benchmark.run_benchmark import check_measures, check_target, run_benchmark
from vlad.eval.generators.entries import Entry, load_entry, missing_model
from vlad.eval.options import BenchmarkOptions
from vlad.eval.protocols.protocol import ScoringMode
from vlad.metrics.ocr import build_ocr_engine
from vlad.utils.atomic_files import write_json
from vlad.utils.errors import UserError, counted, did_you_mean
from vlad.utils.paths import writable_directory

PROTOCOL = "mario"
# The table's columns: heading, field of Published, digits.
COLUMNS = (
    ("FID", "fid", 2),
    ("CLIP", "clip_score", 4),
    ("Acc", "accuracy", 4),
    ("P", "precision", 4),
    ("R", "recall", 4),
    ("F", "f_measure", 4),
)
FAULT_LENGTH = 200  # characters
# The paper's order.
ORDER = ("stable-diffusion", "fine-tuned", "controlnet", "deepfloyd", "textdiffuser", "artist", "vlad")


@dataclass(frozen=True)
class Row:
    """A row: its name, its entry, its figures by (mode, field), or why it is left out.

    `notes` say what its FID and CLIPScore rest on, or lack; `faults` name the images that are not scored.
    """

    name: str
    entry: Entry
    measured: Mapping[tuple[str, str], float]
    images: int = 0
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    left_out: str | None = None

    @property
    def title(self) -> str:
        """Its name in the table."""
        return self.entry.title or self.name


def read_entries(folder: Path, overrides: Sequence[str] = ()) -> dict[str, tuple[Path, list[str]]]:
    """The YAML files of a folder by name, in the table's order, each with its overrides (ROW.key=value)."""
    files = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if not files:
        raise UserError(f"There is no entry in {folder}; see configs/eval/ for those that come with the code.")
    given: dict[str, list[str]] = {name: [] for name in files}
    for override in overrides:
        name, dot, rest = override.partition(".")
        if not dot or name not in files:
            hint = did_you_mean(name, files)
            raise UserError(f"{override!r} names no row; write ROW.key=value.{hint} Rows: {', '.join(files)}.")
        given[name].append(rest)
    names = sorted(files, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    return {name: (files[name], given[name]) for name in names}


def score_rows(entries: Mapping[str, tuple[Path, list[str]]], options: BenchmarkOptions, out: Path) -> list[Row]:
    """Scores every row whose models are present; images and OCR results that are stored are reused."""
    options = replace(options, protocol=PROTOCOL)
    loaded, left_out = {}, {}
    for name, (path, overrides) in entries.items():
        with _naming_row(name):
            loaded[name] = load_entry(path, overrides)
            left_out[name] = missing_model(loaded[name])
    check_measures(options)
    # A mistake in the last entry, or in its models, shows before the first row is generated.
    for name, (path, overrides) in entries.items():
        if left_out[name] is None:
            with _naming_row(name):
                check_target(path, options, out / name, overrides)
    rows = []
    for name, (path, overrides) in entries.items():
        entry = loaded[name]
        if left_out[name] is not None:
            rows.append(Row(name, entry, {}, left_out=left_out[name]))
            continue
        with _naming_row(name):
            found, _ = run_benchmark(path, options, out / name, overrides)
        notes = [f"{score.name}: {score.protocol}." for score in found.fidelity if score.name != "KID"]
        notes += found.left_out.values()
        faults = (*found.missing, *found.unreadable)
        rows.append(Row(name, entry, measured(found), len(found.scored), tuple(notes), faults))
    return rows


@contextmanager
def _naming_row(name: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"Row {name}: {error}") from error


def measured(found: Evaluation) -> dict[tuple[str, str], float]:
    """An evaluation's figures by mode and field; FID and CLIPScore are the same in both modes."""
    figures: dict[tuple[str, str], float] = {}
    modes: tuple[ScoringMode, ...] = ("strict", "corrected")
    for mode in modes:
        for metric, (value, _, _) in found.metrics.get(PROTOCOL, {}).get(mode, {}).items():
            figures[mode, metric] = value
        for score in found.fidelity:
            figures.setdefault((mode, "fid" if score.name == "FID" else score.name), score.value)
            if score.name == "CLIPScore":
                figures[mode, "clip_score"] = score.value
    return figures


def table1_markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown: every row's published figures, and the measured ones, strict and corrected."""
    headings = " | ".join(heading for heading, _, _ in COLUMNS)
    lines = [f"| | | {headings} | images |", "|---" * (len(COLUMNS) + 3) + "|"]
    for row in rows:
        published = _cells(
            {("published", name): getattr(row.entry.published, name) for _, name, _ in COLUMNS}, "published"
        )
        lines.append(f"| {row.title} | published | {published} | {row.entry.published.source or '-'} |")
        if row.left_out is not None:
            lines.append(f"| | not measured: {row.left_out} |{' |' * (len(COLUMNS) + 1)}")
            continue
        partial = f", {len(row.faults)} missing" if row.faults else ""
        lines += [
            f"| | {mode} | {_cells(row.measured, mode)} | {row.images}{partial} |" for mode in ("strict", "corrected")
        ]
    return "\n".join(lines) + "\n"


def _cells(figures: Mapping[tuple[str, str], float | None], mode: str) -> str:
    values = [(figures.get((mode, name)), digits) for _, name, digits in COLUMNS]
    return " | ".join("-" if value is None else f"{value:.{digits}f}" for value, digits in values)


def remarks(rows: Sequence[Row], options: BenchmarkOptions, engine: str, prompts: int) -> list[str]:
    """What the figures rest on and what they lack, a sentence each, of `prompts` prompts in the files."""
    files = ", ".join(path.name for path in options.prompts)
    scored = counted(prompts, "prompt")
    if options.first is not None and options.first < prompts:
        scored = f"the first {options.first} of {scored}"
    per_prompt = counted(options.images_per_prompt or 1, "image")
    lines = [
        f"Measured by {engine} on {scored} of {files}, {per_prompt} a prompt, seed {options.seed}.",
        "Published figures were read with MaskTextSpotter v3 on the 5,414 prompts of MARIO-Eval, four images a"
        " prompt: only the same engine on the same prompts compares with them.",
    ]
    measured_rows = [row for row in rows if row.left_out is None]
    lines += [_origin(row) for row in measured_rows]
    watermarked = [row.title for row in measured_rows if row.entry.kind == "deepfloyd"]
    lines += [f"The watermark of {title} is painted over before it is read." for title in watermarked]
    notes: dict[str, list[str]] = {}
    for row in measured_rows:
        for note in row.notes:
            notes.setdefault(note, []).append(row.title)
    for note, titles in notes.items():
        lines.append(note if len(titles) == len(measured_rows) else f"{', '.join(titles)}: {note}")
    for row in measured_rows:
        if row.faults:
            total, first = row.images + len(row.faults), row.faults[0]
            shown = first if len(first) <= FAULT_LENGTH else f"{first[:FAULT_LENGTH]}..."
            lines.append(f"PARTIAL, {row.title}: {len(row.faults)} of {total} images are not scored, first {shown}")
    return lines


def _origin(row: Row) -> str:
    if row.entry.kind == "images":
        return f"{row.title}: the images of {row.entry.source}."
    steps = "" if row.entry.steps is None else f", {counted(row.entry.steps, 'step')}"
    return f"{row.title}: generated by {row.entry.source}{steps}."


def table_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as plain values."""
    return [
        {
            "row": row.name,
            "title": row.entry.title,
            "published": {name: getattr(row.entry.published, name) for _, name, _ in COLUMNS},
            "measured": {
                mode: {name: row.measured.get((mode, name)) for _, name, _ in COLUMNS}
                for mode in ("strict", "corrected")
            },
            "images": row.images,
            "missing": len(row.faults),
            "faults": list(row.faults),
            "notes": list(row.notes),
            "left_out": row.left_out,
        }
        for row in rows
    ]


def write_table(rows: Sequence[Row], lines: Sequence[str], out: Path) -> str:
    """Writes OUT/table1.md and OUT/table1.json; returns the Markdown."""
    text = table1_markdown(rows) + "\n" + "\n".join(lines) + "\n"
    (out / "table1.md").write_text(text, encoding="utf-8")
    write_json(out / "table1.json", table_json(rows))
    return text


def evaluate_table1(
    folder: Path, rows: Sequence[str], overrides: Sequence[str], options: BenchmarkOptions, out: Path
) -> tuple[list[Row], str]:
    """Scores the named rows (none: all) of a folder of entries and writes the table to OUT; the rows and its Markdown.

    Raises UserError, before anything is generated, for what cannot be scored.
    """
    prompts = read_prompt_files(options.prompts)
    entries = read_entries(folder, overrides)
    for name in rows:
        if name not in entries:
            raise UserError(f"There is no row {name!r}.{did_you_mean(name, entries)} Rows: {', '.join(entries)}.")
    out = writable_directory(out, "the table", needed_bytes=20_000_000)
    scored = score_rows({name: entry for name, entry in entries.items() if name in (rows or entries)}, options, out)
    lines = remarks(scored, options, build_ocr_engine(options.ocr.engine).name, len(prompts))
    return scored, write_table(scored, lines, out)
