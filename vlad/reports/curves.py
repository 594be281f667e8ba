"""Training curves: the metrics that a run's stages have logged as CSV, and curves.png."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

Curve = list[tuple[int, float]]  # (step, value), in the order of steps

NOT_METRICS = ("epoch", "step")


def read_curves(stage: Path) -> dict[str, Curve]:
    """The logged metrics of a stage over all its starts, by name.

    A step that was logged twice, before and after a resume, counts once, with the later start's value.
    """
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for path in sorted((stage / "logs").glob("from-*/metrics.csv")):  # from-step-00000250: in the order of starts
        for row in _whole_rows(path):
            for name, text in row.items():
                if name not in NOT_METRICS and text:
                    found[name][int(row["step"])] = float(text)
    return {name: sorted(values.items()) for name, values in found.items()}


def _whole_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV file of metrics, without those that a kill or a full disk has cut short."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines()
    for row in csv.DictReader(lines, restkey=""):
        is_cut = "" in row or None in row.values()
        if not is_cut and row.get("step", "").isdecimal() and all(_is_number(value) for value in row.values()):
            yield row


def _is_number(text: str) -> bool:
    try:
        float(text or 0)
    except ValueError:
        return False
    return True


def thin_out(curve: Curve, points: int) -> Curve:
    """At most about `points` points, each the mean of its neighbourhood."""
    width = -(-len(curve) // points)
    chunks = [curve[start : start + width] for start in range(0, len(curve), width)]
    return [(chunk[-1][0], sum(value for _, value in chunk) / len(chunk)) for chunk in chunks]


def draw_curves(stages: Mapping[str, Path], path: Path) -> None:
    """One image of the metrics of several stages (name -> the stage's folder), their total losses left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(stages), figsize=(4.5 * len(stages), 3.2), squeeze=False)
    for axis, (stage, folder) in zip(axes[0], stages.items(), strict=True):
        for name, curve in read_curves(folder).items():
            if name != "loss" and any(value > 0 for _, value in curve):
                axis.plot(*zip(*curve, strict=True), label=name, linewidth=1)
        axis.set(title=stage, xlabel="step", yscale="log")
        axis.legend()
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
