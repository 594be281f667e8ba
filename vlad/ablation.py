"""Table II: what each part is worth. The same training without it, several seeds, the same budget of steps.

variant x seed --> train.py CONFIG overrides --> tools/evaluate.py RUN --> accuracies
                                             --> mean and deviation over seeds, pictures side by side
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from PIL import Image

from vlad.config import Config
from vlad.errors import UserError
from vlad.evaluation.report import GridRow, sample_grid

FULL = "full"
GRID_PICTURES = 8
# The way of drawing that a run is judged by: the product's, or all that it can do.
MAIN_MODES = ("refit", "no layout", "true layout")


@dataclass(frozen=True)
class Variant:
    """One row: its name, what it changes, and the paper's figures of the same row (FID, CLIPScore, OCR F)."""

    name: str
    title: str
    overrides: tuple[str, ...]
    published: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Scores:
    """A run's shares (0..1) in one way of drawing."""

    words: float
    letters: float


def variants(config: Config) -> tuple[Variant, ...]:
    """The rows of the table. Without a layout stage, its steps go to the refine stage, so that budgets are equal."""
    if config.base is not None or config.layout.kind == "none" or config.composition.kind == "none":
        raise UserError(
            "An ablation begins with the whole method, and this config has parts of it off, or a base; name another"
            " one, such as configs/tiny.yaml."
        )
    steps = config.train.layout.steps + config.train.refine.steps
    return (
        Variant(FULL, "full", (), (35.12, 0.352, 0.879)),
        Variant("no-ccm", "without CCM", ("composition.kind=none",), (39.12, 0.342, 0.812)),
        Variant(
            "no-layout",
            "without hierarchical guidance",
            ("layout.kind=none", f"train.refine.steps={steps}"),
            (37.45, 0.345, 0.835),
        ),
        Variant("no-alignment", "without alignment loss", ("losses.align_weight=0",)),
        Variant("no-spelling", "without spelling tokens", ("composition.spelling=false",)),
    )


def run_overrides(config: Config, variant: Variant, seed: int, given: Sequence[str]) -> list[str]:
    """What follows train.py's config file for one run; the user's own overrides first."""
    return [*given, *variant.overrides, f"name={config.name}-ablation-{variant.name}-{seed}", f"seed={seed}"]


def read_scores(run: Path) -> dict[str, Scores]:
    """What tools/evaluate.py found in a run, by way of drawing."""
    metrics: dict[str, Any] = json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    return {mode: Scores(found["word_accuracy"], found["letter_accuracy"]) for mode, found in metrics["modes"].items()}


def main_mode(scores: dict[str, Scores]) -> str:
    """The way of drawing that the run is judged by."""
    return next(mode for mode in MAIN_MODES if mode in scores)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of percentages: 92.5 ± 1.2; one value alone has no deviation."""
    shown = f"{100 * mean(values):.1f}"
    return f"{shown} ± {100 * stdev(values):.1f}" if len(values) > 1 else shown


def ablation_table(rows: Sequence[tuple[Variant, Sequence[dict[str, Scores]]]]) -> str:
    """The table in Markdown: accuracies over seeds, the difference from the full method, and the paper's figures."""
    lines = [
        "| | words, % | letters, % | words against full | raw plan, words, % | true layout, words, % | seeds |"
        " paper: FID, CLIP, F |",
        "|---|---|---|---|---|---|---|---|",
    ]
    full = [scores[main_mode(scores)].words for scores in rows[0][1]]
    for variant, seeds in rows:
        judged = [scores[main_mode(scores)] for scores in seeds]
        difference = 100 * (mean(s.words for s in judged) - mean(full))
        cells = [
            variant.title,
            spread([s.words for s in judged]),
            spread([s.letters for s in judged]),
            "" if variant.name == FULL else f"{difference:+.1f}",
            *(
                spread([scores[mode].words for scores in seeds]) if all(mode in scores for scores in seeds) else "-"
                for mode in ("raw", "true layout")
            ),
            str(len(seeds)),
            "-" if variant.published is None else ", ".join(f"{figure:g}" for figure in variant.published),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def ablation_grid(rows: Sequence[tuple[Variant, Path]], captions: Sequence[str]) -> Image.Image:
    """The first pictures of one run of every variant side by side, a prompt a row."""
    pictures = []
    for number, caption in enumerate(captions[:GRID_PICTURES]):
        row = []
        for _, run in rows:
            folder = main_mode(read_scores(run)).replace(" ", "-")
            with Image.open(run / "evaluation" / folder / f"{number:04d}.png") as image:
                row.append(image.convert("RGB"))
        pictures.append(GridRow(caption, tuple(row)))
    return sample_grid(pictures, [variant.title for variant, _ in rows], cell_pixels=170, columns=1)
