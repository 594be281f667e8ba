"""Table II: what each part is worth. The same training without it, several seeds, the same budget of steps.

variant x seed --> train.py CONFIG overrides --> tools/evaluate.py RUN --> accuracies
                                             --> mean and deviation over seeds, images side by side

No variant changes what the autoencoder's stage sees: the variants of a seed share the one of the full method.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from PIL import Image

from vlad.config.schema import Config
from vlad.reports.image_grids import GridRow, sample_grid
from vlad.training.parts import TRAINED
from vlad.utils.errors import UserError

FULL = "full"
GRID_IMAGES = 8
AUTOENCODER = "autoencoder"  # the stage that is shared
METRICS = "metrics.json"  # of a stage: its presence says that it is done
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
    """A run's shares (0..1) in one way of drawing: words and letters read, and what the prompt names obeyed.

    None where it cannot be measured: the letters' colour without a layout, the place where nothing was read.
    """

    words: float
    letters: float
    grounds: float | None = None
    inks: float | None = None
    places: float | None = None


# A variant with its scores, seed by seed.
Row = tuple[Variant, Sequence[dict[str, Scores]]]


def variants(config: Config) -> tuple[Variant, ...]:
    """The rows of the table. Without a layout stage, its steps go to the refine stage, so that budgets are equal."""
    if config.base is not None or config.layout.kind == "none" or config.composition.kind == "none":
        raise UserError(
            "An ablation begins with the whole method, and this config has parts of it off, or a base; name another"
            " one, such as configs/tiny.yaml."
        )
    if config.losses.align_weight == 0 or not config.composition.spelling:
        off = "losses.align_weight=0" if config.losses.align_weight == 0 else "composition.spelling=false"
        raise UserError(f"{off} makes two rows of the table the same; leave it out.")
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


def autoencoder_is_done(run: Path) -> bool:
    """Whether a run's autoencoder stage can be shared."""
    return (run / AUTOENCODER / METRICS).is_file()


def share_autoencoder(source: Path, target: Path) -> bool:
    """Puts the finished autoencoder stage of a run into another run's directory, which then begins behind it.

    False where there is none to share (an autoencoder that is not trained), or the other run has begun its own. The
    metrics come last, and all of it under its name at once: a copy that was cut off is made anew.
    """
    finished, own = source / AUTOENCODER, target / AUTOENCODER
    if own.exists() or not autoencoder_is_done(source):
        return False
    temporary = target / f"{AUTOENCODER}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name in (TRAINED, METRICS):
        shutil.copyfile(finished / name, temporary / name)
    temporary.rename(own)
    return True


def read_scores(run: Path) -> dict[str, Scores]:
    """What tools/evaluate.py found in a run, by way of drawing."""
    metrics: dict[str, Any] = json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    return {
        mode: Scores(
            found["word_accuracy"],
            found["letter_accuracy"],
            found["colours"]["grounds_right"],
            found["colours"]["inks_right"],
            found["places"]["places_right"],
        )
        for mode, found in metrics["modes"].items()
    }


def main_mode(scores: dict[str, Scores]) -> str:
    """The way of drawing that the run is judged by."""
    return next(mode for mode in MAIN_MODES if mode in scores)


def spread(values: Sequence[float | None], form: str = ".1f") -> str:
    """Mean and standard deviation of percentages: 92.5 ± 1.2; of one value no deviation; "-" where one is missing."""
    found = [value for value in values if value is not None]
    if len(found) < len(values):
        return "-"
    shown = format(100 * mean(found), form)
    return f"{shown} ± {100 * stdev(found):.1f}" if len(found) > 1 else shown


def ablation_table(rows: Sequence[Row]) -> str:
    """The table in Markdown: accuracies over seeds, the difference from the full method, and the paper's figures.

    Differences are of runs with one seed, so that what the seed does to both falls out. Every row has the same seeds.
    """
    lines = [
        "| | words, % | against full | letters, % | ground, % | ink, % | place, % | words: true layout |"
        " words: raw plan | paper: FID, CLIP, F |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    full = [scores[main_mode(scores)].words for scores in rows[0][1]]
    for variant, seeds in rows:
        judged = [scores[main_mode(scores)] for scores in seeds]
        differences = [s.words - of_full for s, of_full in zip(judged, full, strict=True)]
        cells = [
            variant.title,
            spread([s.words for s in judged]),
            "" if variant.name == FULL else spread(differences, "+.1f"),
            *(spread([getattr(s, share) for s in judged]) for share in ("letters", "grounds", "inks", "places")),
            *(
                spread([scores[mode].words if mode in scores else None for scores in seeds])
                for mode in ("true layout", "raw")
            ),
            "-" if variant.published is None else ", ".join(f"{figure:g}" for figure in variant.published),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def order_line(rows: Sequence[Row]) -> str:
    """The variants by words, best first, and those that the paper has by its OCR F, best first."""
    words = {variant.title: 100 * mean(scores[main_mode(scores)].words for scores in seeds) for variant, seeds in rows}
    published = {variant.title: variant.published[2] for variant, _ in rows if variant.published is not None}
    return f"Order by words: {_ranked(words, 1)}. The paper's, by OCR F: {_ranked(published, 3)}."


def _ranked(values: Mapping[str, float], digits: int) -> str:
    """Names by falling values, "=" between those that are the same as they are printed."""
    told = ""
    last = None
    for name, value in sorted(((name, round(value, digits)) for name, value in values.items()), key=lambda x: -x[1]):
        told += name if last is None else f"{' = ' if value == last else ' > '}{name}"
        last = value
    return told


def ablation_page(config: Config, rows: Sequence[Row], command: str, count: int, engine: str, image: str) -> str:
    """The whole result in Markdown: command, table, what it rests on, every run's words, and the images."""
    train, seeds = config.train, len(rows[0][1])
    steps = train.layout.steps + train.refine.steps
    spreads = f"{seeds} seeds, mean ± standard deviation" if seeds > 1 else "One seed"
    lines = [
        "# What each part is worth",
        "",
        f"    {command}",
        "",
        ablation_table(rows),
        f"{spreads}; {count} held-out words a run, read by {engine}. Words, letters, colours of the ground and of"
        " the letters where the prompt names them, and the place of the text where it names one: drawn with refit; by a"
        " model that knows no layouts, as it draws. Every run:"
        f" {steps} steps of {config.data.batch_size} images in the layout and refine stages together"
        f" ({train.layout.steps} and {train.refine.steps}; without hierarchical guidance all of them refine), behind an"
        " autoencoder that the variants of a seed share. Differences from full are of runs with one seed. The last"
        " column is the paper's, of other images and another engine.",
        "",
        order_line(rows),
        "",
        f"| words, % | {' | '.join(f'seed {seed}' for seed in range(seeds))} |",
        "|---" * (seeds + 1) + "|",
        *(
            f"| {variant.title} | {' | '.join(f'{100 * s[main_mode(s)].words:.1f}' for s in found)} |"
            for variant, found in rows
        ),
        "",
        f"![The first images of seed 0, a column a variant]({image})",
    ]
    return "\n".join(lines) + "\n"


def ablation_grid(rows: Sequence[tuple[Variant, Path]], captions: Sequence[str]) -> Image.Image:
    """The first images of one run of every variant side by side, a prompt a row."""
    images = []
    for number, caption in enumerate(captions[:GRID_IMAGES]):
        row = []
        for _, run in rows:
            folder = main_mode(read_scores(run)).replace(" ", "-")
            with Image.open(run / "evaluation" / folder / f"{number:04d}.png") as image:
                row.append(image.convert("RGB"))
        images.append(GridRow(caption, tuple(row)))
    return sample_grid(images, [variant.title for variant, _ in rows], cell_pixels=200, columns=1)
