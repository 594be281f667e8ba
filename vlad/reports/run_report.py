"""runs/NAME/report.html: one self-contained page that shows a run as it stands.

Made from the run's own files: the CSV logs of every stage, the sample grids, config.yaml and starts.jsonl. So it can be
written again at any time, also for a run that has been moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlad.reports.curves import Curve, read_curves
from vlad.reports.line_plot import LinePlot, line_plot
from vlad.reports.quarantined import quarantined
from vlad.reports.starts import read_starts
from vlad.utils.html import render, write_page
from vlad.utils.json_objects import read_object

REPORT = "report.html"
TEMPLATE = Path(__file__).with_suffix(".html")
STAGES = ("align", "autoencoder", "layout", "refine")
NOISE = "noise_"  # begins the names of the losses by noise level


@dataclass(frozen=True)
class StageSection:
    """A stage as the page shows it: plots, grids (first and newest) as a name and a PNG."""

    name: str
    state: str
    plots: list[LinePlot]
    grids: list[tuple[str, bytes]]


def write_run_report(directory: Path) -> Path:
    """Writes the page of a run directory, whole or not at all."""
    curves = {stage: read_curves(directory / stage) for stage in STAGES}
    config = directory / "config.yaml"
    page = render(
        TEMPLATE,
        title=directory.name,
        starts=read_starts(directory),
        stages=[
            StageSection(name, _state(directory / name, found), _plots(found), _grids(directory / "samples" / name))
            for name, found in curves.items()
            if found
        ],
        quarantined=quarantined(directory),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
    )
    write_page(directory / REPORT, page)
    return directory / REPORT


def _state(stage: Path, curves: Mapping[str, Curve]) -> str:
    """How far the stage is, and its final metrics."""
    metrics = stage / "metrics.json"
    if not metrics.is_file():
        return f"under way, step {max(curve[-1][0] for curve in curves.values()) + 1}"
    try:
        values = read_object(metrics)
        return "done: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    except (ValueError, TypeError) as error:
        return f"done; {metrics.name} is damaged ({error})"


def _plots(curves: Mapping[str, Curve]) -> list[LinePlot]:
    """A plot for every metric; those of the noise levels share one."""
    noise = {name.removeprefix(NOISE): curve for name, curve in curves.items() if name.startswith(NOISE)}
    plots = [line_plot(name, {name: curve}) for name, curve in sorted(curves.items()) if not name.startswith(NOISE)]
    if noise:
        plots.append(line_plot("loss by noise level, 0 hardly any to 9 nearly all", noise))
    return plots


def _grids(folder: Path) -> list[tuple[str, bytes]]:
    grids = sorted(folder.glob("step-*.png"))
    shown = [grids[0], grids[-1]] if len(grids) > 1 else grids
    return [(path.stem, path.read_bytes()) for path in shown]
