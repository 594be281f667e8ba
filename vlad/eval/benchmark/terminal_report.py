"""A benchmark's scores for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vlad.eval.benchmark.evaluator import Evaluation
from vlad.eval.protocols.protocol import SCORING_MODES

NAMES_SHOWN, NAME_LENGTH = 5, 160


def figure_text(value: float, low: float, high: float) -> str:
    """A figure with its interval: .756 [.741, .770]."""
    return f"{value:.4f} [{low:.4f}, {high:.4f}]"


def text_table(result: Evaluation) -> str:
    """The table for a terminal."""
    lines = [f"{'protocol':14}{'metric':20}" + "".join(f"{mode:>28}" for mode in SCORING_MODES)]
    for protocol in result.protocols:
        for metric in protocol.metrics:
            figures = [result.metrics[protocol.name][mode].get(metric) for mode in SCORING_MODES]
            shown = "".join(f"{figure_text(*figure) if figure else '-':>28}" for figure in figures)
            lines.append(f"{protocol.name:14}{metric:20}{shown}")
    for score in result.fidelity:
        figure = f"{score.value:.4f}"
        if score.low is not None and score.high is not None:
            figure = figure_text(score.value, score.low, score.high)
        lines.append(f"{score.name:34}{figure:>28}  {score.protocol}")
    return "\n".join(lines)


def benchmark_summary(result: Evaluation, out: Path) -> str:
    """The table, what it rests on, what is missing, and where the files are."""
    lines = [
        text_table(result),
        f"{len(result.scored)} images of {result.prompts} prompts; in brackets, intervals of 95 %",
        f"Read by {result.engine}, enlarged {result.enlarge}",
        *(f"Left out: {reason}" for reason in result.left_out.values()),
        *partial_lines({"missing": result.missing, "unreadable": result.unreadable}, result.images, "images"),
        f"Report, metrics.json, per_image.parquet: {out}",
    ]
    return "\n".join(lines)


def partial_lines(faults: Mapping[str, Sequence[str]], total: int, unit: str) -> list[str]:
    """A line for each kind of fault that keeps images from being scored, with the first names."""
    lines = []
    for fault, names in faults.items():
        if names:
            more = f", and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            shown = [name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 3]}..." for name in names]
            lines.append(f"PARTIAL, {len(names)} of {total} {unit} {fault}: {'; '.join(shown[:NAMES_SHOWN])}{more}")
    return lines
