"""runs/NAME/report.html: one self-contained page that shows a run as it stands.

Read from what the run has written: the CSV files of every start of every stage, the sample grids, config.yaml and
starts.jsonl. So it can be drawn again at any time, also of a run that has been moved.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure

from vlad.reports.curve_files import whole_rows

PAGE = "report.html"
STARTS = "starts.jsonl"
STAGES = ("align", "autoencoder", "layout", "refine")
HIDDEN = ("epoch", "step")
POINTS = 200  # of a curve
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222 }
h2 { margin-top: 2em; border-bottom: 1px solid #ccc } figure { display: inline-block; margin: 0 1em 1em 0 }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: .5em 1em }
.curves figure { margin: 0 } .curves img { width: 100% }
img { max-width: 100%; image-rendering: auto } .pair { display: flex; gap: 1em; align-items: flex-start }
.pair figure { flex: 1; margin: 0 } figcaption { color: #666 } table { border-collapse: collapse }
td, th { text-align: left; padding: .15em 1em .15em 0; vertical-align: top }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto }
"""

Curve = list[tuple[int, float]]


def write_run_page(directory: Path) -> Path:
    """Writes the page of a run directory, whole or not at all."""
    path = directory / PAGE
    temporary = path.with_suffix(".partial")
    temporary.write_text(_page(directory), encoding="utf-8")
    temporary.replace(path)
    return path


def read_curves(stage: Path) -> dict[str, Curve]:
    """The logged figures of a stage over all its starts, by name, in the order of steps.

    A step that two starts have logged, before and after a resume, counts once, with the later start's value.
    """
    found: dict[str, dict[int, float]] = defaultdict(dict)
    # from-step-00000250: the later a start began, the later its word.
    for path in sorted((stage / "logs").glob("from-*/metrics.csv")):
        for row in whole_rows(path):
            for name, text in row.items():
                if name not in HIDDEN and text:
                    found[name][int(row["step"])] = float(text)
    return {name: sorted(values.items()) for name, values in found.items()}


def _page(directory: Path) -> str:
    starts = _starts(directory)
    parts = [f"<h1>{html.escape(directory.name)}</h1>", _last_start(starts)]
    for stage in STAGES:
        curves = read_curves(directory / stage)
        if curves:
            parts.append(f"<h2>{stage}</h2>{_state(directory / stage, curves)}{_plots(curves)}")
            parts.append(_grids(directory / "samples" / stage))
    config = directory / "config.yaml"
    if config.is_file():
        parts.append(f"<h2>Config</h2><pre>{html.escape(config.read_text(encoding='utf-8'))}</pre>")
    if len(starts) > 1:
        lines = [f"{start.get('time', '')}  {start.get('command', '')}" for start in starts]
        parts.append(f"<h2>All starts</h2><pre>{html.escape(chr(10).join(lines))}</pre>")
    title = f"<title>{html.escape(directory.name)}</title>"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">{title}<style>{_STYLE}</style>{"".join(parts)}</html>\n'
    )


def _starts(directory: Path) -> list[dict[str, Any]]:
    path = directory / STARTS
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):  # cut short by a kill or a full disk
            found.append(json.loads(line))
    return found


def _last_start(starts: Sequence[Mapping[str, Any]]) -> str:
    return _table(starts[-1]) if starts else ""


def _table(rows: Mapping[str, Any]) -> str:
    cells = [f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows.items()]
    return f"<table>{''.join(cells)}</table>"


def _state(stage: Path, curves: Mapping[str, Curve]) -> str:
    """How far the stage is, and its last figures."""
    metrics = stage / "metrics.json"
    last = max(curve[-1][0] for curve in curves.values())
    if not metrics.is_file():
        return f"<p>under way, step {last + 1}</p>"
    figures = json.loads(metrics.read_text(encoding="utf-8"))
    told = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    return f"<p>done: {html.escape(told)}</p>"


def _plots(curves: Mapping[str, Curve]) -> str:
    noise = {name: curve for name, curve in curves.items() if name.startswith("noise_")}
    plots = [_plot(name, {name: curve}) for name, curve in sorted(curves.items()) if name not in noise]
    if noise:
        plots.append(_plot("loss by noise level, 0 hardly any to 9 nearly all", noise))
    drawn = (f'<figure><img alt="" src="data:image/svg+xml;base64,{_encoded(plot)}"></figure>' for plot in plots)
    return f'<div class="curves">{"".join(drawn)}</div>'


def _plot(title: str, curves: Mapping[str, Curve]) -> bytes:
    """One or more curves as SVG."""
    figure = Figure(figsize=(3.6, 2.3))
    axes = figure.add_axes((0.13, 0.12, 0.84, 0.76))
    several = len(curves) > 1
    for number, (name, curve) in enumerate(sorted(curves.items())):
        points = thinned(curve, POINTS)
        # Many curves are of one kind, in an order: from dark to light.
        colour = colormaps["viridis"](number / len(curves)) if several else "C0"
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
    values = [value for curve in curves.values() for _, value in curve if math.isfinite(value)]
    if values and min(values) > 0 and max(values) > 30 * min(values):
        axes.set_yscale("log")
    axes.set_title(title, fontsize=8)
    axes.tick_params(labelsize=6)
    axes.grid(alpha=0.3)
    stream = io.BytesIO()
    with rc_context({"svg.fonttype": "none"}):  # text, not outlines: a tenth of the size
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def thinned(curve: Curve, points: int) -> Curve:
    """At most about so many points, each the mean of those it stands for."""
    width = -(-len(curve) // points)
    chunks = [curve[start : start + width] for start in range(0, len(curve), width)]
    return [(chunk[-1][0], sum(value for _, value in chunk) / len(chunk)) for chunk in chunks]


def _grids(folder: Path) -> str:
    """The first sample grid beside the newest."""
    grids = sorted(folder.glob("step-*.png"))
    shown = [grids[0], grids[-1]] if len(grids) > 1 else grids
    figures = [
        f'<figure><img alt="" src="data:image/png;base64,{_encoded(path.read_bytes())}">'
        f"<figcaption>{path.stem}</figcaption></figure>"
        for path in shown
    ]
    return f'<div class="pair">{"".join(figures)}</div>' if figures else ""


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def changes_since_last_start(directory: Path, facts: Mapping[str, Any]) -> list[str]:
    """What the run's figures may hang on and is not as it was at its last start, each as "name: before -> now"."""
    starts = _starts(directory)
    if not starts:
        return []
    before, now = _told_apart(starts[-1]), _told_apart(facts)
    names = [name for name in now if name in before and before[name] != now[name]]
    return [f"{name}: {before[name]} -> {now[name]}" for name in names]


def _told_apart(facts: Mapping[str, Any]) -> dict[str, str]:
    """The facts of a start that results hang on, each library's release apart."""
    found = {name: str(facts[name]) for name in ("revision", "python", "device", "attention") if name in facts}
    releases = (entry.rpartition(" ") for entry in str(facts.get("versions", "")).split(", "))
    return found | {name: release for name, _, release in releases if name}


def record_start(directory: Path, facts: Mapping[str, Any]) -> None:
    """Adds a line to starts.jsonl; one that a kill has cut short before it stays a line of its own."""
    path = directory / STARTS
    cut = path.is_file() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as stream:
        stream.write("\n" * cut + json.dumps(facts, ensure_ascii=False) + "\n")
