"""runs/NAME/report.html: one self-contained page that shows a run as it stands.

Made from the run's own files: the CSV logs of every stage, the sample grids, config.yaml and starts.jsonl. So it can be
written again at any time, also for a run that has been moved.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure

from vlad.reports.curves import Curve, read_curves, thin_out
from vlad.reports.quarantined import quarantined
from vlad.reports.starts import read_starts
from vlad.utils.html import render, write_page
from vlad.utils.json_objects import read_object

REPORT = "report.html"
TEMPLATE = Path(__file__).with_suffix(".html")
STAGES = ("align", "autoencoder", "layout", "refine")
POINTS = 200  # of a curve


@dataclass(frozen=True)
class StageSection:
    """A stage as the page shows it: plots as SVG, grids (first and newest) as a name and a PNG."""

    name: str
    state: str
    plots: list[bytes]
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


def _plots(curves: Mapping[str, Curve]) -> list[bytes]:
    """An SVG for every metric; those of the noise levels share one."""
    noise = {name: curve for name, curve in curves.items() if name.startswith("noise_")}
    plots = [_plot(name, {name: curve}) for name, curve in sorted(curves.items()) if name not in noise]
    if noise:
        plots.append(_plot("loss by noise level, 0 hardly any to 9 nearly all", noise))
    return plots


def _plot(title: str, curves: Mapping[str, Curve]) -> bytes:
    """One or more curves as SVG."""
    lines = tuple((name, tuple(thin_out(curve, POINTS))) for name, curve in sorted(curves.items()))
    values = [value for curve in curves.values() for _, value in curve if math.isfinite(value)]
    return _plot_lines(title, lines, bool(values) and min(values) > 0 and max(values) > 30 * min(values))


@lru_cache(maxsize=256)  # a refresh plots only the stage under way: a plot takes longer than many a training step
def _plot_lines(title: str, lines: tuple[tuple[str, tuple[tuple[int, float], ...]], ...], log_scale: bool) -> bytes:
    figure = Figure(figsize=(3.6, 2.3))
    axes = figure.add_axes((0.13, 0.12, 0.84, 0.76))
    several = len(lines) > 1
    for number, (name, points) in enumerate(lines):
        # Several curves are levels of one quantity: from dark to light.
        colour = colormaps["viridis"](number / len(lines)) if several else "C0"
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            linewidth=1,
            marker="o" if len(points) == 1 else "",
            markersize=3,
            label=name.removeprefix("noise_"),
        )
    if several:
        axes.legend(fontsize=5, ncols=5, frameon=False)
    if log_scale:
        axes.set_yscale("log")
    axes.set_title(title, fontsize=8)
    axes.tick_params(labelsize=6)
    axes.grid(alpha=0.3)
    stream = io.BytesIO()
    with rc_context({"svg.fonttype": "none"}):  # text, not outlines: a tenth of the size
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def _grids(folder: Path) -> list[tuple[str, bytes]]:
    grids = sorted(folder.glob("step-*.png"))
    shown = [grids[0], grids[-1]] if len(grids) > 1 else grids
    return [(path.stem, path.read_bytes()) for path in shown]
