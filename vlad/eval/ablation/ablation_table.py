"""Table II from its runs' metrics: means and deviations over seeds, differences from the full method, images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from PIL import Image

from vlad.config.schema import Config
from vlad.eval.ablation.variants import FULL, Variant
from vlad.eval.options import mode_name
from vlad.reports.image_grids import GridRow, sample_grid
from vlad.utils.errors import UserError, reason_of
from vlad.utils.json_objects import read_object

GRID_IMAGES = 8
# The mode that a run is judged by: the product's, or else the one that it has.
MAIN_MODES = ("refit", "no layout", "true layout")


@dataclass(frozen=True)
class Scores:
    """A run's shares (0..1) in one generation mode: words (of posters: lines) and letters read, colours and positions
    as the prompt says.

    None where a share cannot be measured: colours without a layout, positions where nothing was read.
    """

    words: float
    letters: float
    grounds: float | None = None
    inks: float | None = None
    places: float | None = None


# A variant with its scores, seed by seed.
Row = tuple[Variant, Sequence[dict[str, Scores]]]


def read_scores(run: Path) -> dict[str, Scores]:
    """A run's scores on held-out words, or posters, by generation mode."""
    path = run / "evaluation" / "metrics.json"
    try:
        return {mode: _scores(found) for mode, found in read_object(path)["modes"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} holds no scores that can be read ({reason_of(error)}); evaluate the run again."
        ) from error


def _scores(found: dict[str, Any]) -> Scores:
    """The scores of one mode; of posters they are of lines in place of words."""
    colours, places = found["colours"], found["places"]
    if "lines" not in found:
        return Scores(
            found["word_accuracy"],
            found["letter_accuracy"],
            colours["grounds_right"],
            colours["inks_right"],
            places["places_right"],
        )
    right = (named["right"] / named["named"] if named["named"] else None for named in (colours, places))
    return Scores(found["lines"]["share"], found["letter_accuracy"], None, *right)


def main_mode(scores: dict[str, Scores]) -> str:
    """The generation mode that the run is judged by."""
    return next(mode for mode in MAIN_MODES if mode in scores)


def spread(values: Sequence[float | None], form: str = ".1f") -> str:
    """Mean and standard deviation of percentages: 92.5 ± 1.2; no deviation of one value; "-" where one is missing."""
    present = [value for value in values if value is not None]
    if len(present) < len(values):
        return "-"
    shown = format(100 * mean(present), form)
    return f"{shown} ± {100 * stdev(present):.1f}" if len(present) > 1 else shown


def ablation_table(rows: Sequence[Row]) -> str:
    """The table in Markdown: accuracies over seeds, the difference from the full method, and the paper's figures.

    Differences are between runs of the same seed, which cancels the seed's effect. Every row has the same seeds.
    """
    lines = [
        "| | words, % | against full | letters, % | background, % | text colour, % | position, % | words: true layout"
        " | words: raw plan | paper: FID, CLIP, F |",
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
    """The variants ranked by words, and those of the paper ranked by its OCR F."""
    words = {variant.title: 100 * mean(scores[main_mode(scores)].words for scores in seeds) for variant, seeds in rows}
    published = {variant.title: variant.published[2] for variant, _ in rows if variant.published is not None}
    return f"Order by words: {_ranked(words, 1)}. The paper's, by OCR F: {_ranked(published, 3)}."


def _ranked(values: Mapping[str, float], digits: int) -> str:
    """Names by falling values, "=" between values that print alike."""
    text = ""
    last = None
    for name, value in sorted(((name, round(value, digits)) for name, value in values.items()), key=lambda x: -x[1]):
        text += name if last is None else f"{' = ' if value == last else ' > '}{name}"
        last = value
    return text


def ablation_page(config: Config, rows: Sequence[Row], command: str, count: int, engine: str, image: str) -> str:
    """The whole result in Markdown: command, table, its basis, every run's words, and the images."""
    train, seeds = config.train, len(rows[0][1])
    steps = train.layout.steps + train.refine.steps
    spreads = f"{seeds} seeds, mean ± standard deviation" if seeds > 1 else "One seed"
    lines = [
        "# Ablation: the method without each of its parts",
        "",
        f"    {command}",
        "",
        ablation_table(rows),
        f"{spreads}; {count} held-out words a run, read by {engine}. Words, letters, colours of the background and of"
        " the letters and positions of the text where the prompt names them: generated with refit, or without a"
        " layout by a model that has none. Every run:"
        f" {steps} steps of {config.data.batch_size} images in the layout and refine stages together"
        f" ({train.layout.steps} and {train.refine.steps}; without hierarchical guidance all of them refine), after an"
        " autoencoder that the variants of a seed share. Differences from full are between runs of one seed. The last"
        " column is the paper's, with other images and another engine.",
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
            folder = mode_name(main_mode(read_scores(run)))
            with Image.open(run / "evaluation" / folder / f"{number:04d}.png") as image:
                row.append(image.convert("RGB"))
        images.append(GridRow(caption, tuple(row)))
    return sample_grid(images, [variant.title for variant, _ in rows], cell_pixels=200, columns=1)
