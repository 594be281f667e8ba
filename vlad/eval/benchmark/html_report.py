"""report.html: the table, what the figures rest on, the breakdown, and images with what was asked and read."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from vlad.eval.benchmark.breakdown import draw_breakdown
from vlad.eval.benchmark.evaluator import Evaluation, Shown
from vlad.eval.benchmark.parallel_ocr import load_image
from vlad.eval.protocols.protocol import SCORING_MODES
from vlad.layout.reading_order import reading_order

CARD_PIXELS = 224
MOST_NAMED = 50  # missing images that the page names; metrics.json names all
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #1d1d1f; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } td, th { padding: .15rem 1rem .15rem 0; text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } tr.first td { border-top: 1px solid #ddd; }
.bad { color: #b3261e; } .quiet { color: #666; } .plot { max-width: 100%; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(224px, 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid #ddd; border-radius: 6px; overflow: hidden; }
figure div { background: #f2f2f4; display: flex; align-items: center; justify-content: center; height: 224px; }
figcaption { padding: .5rem .7rem; font-size: .8rem; overflow-wrap: anywhere; } figcaption dl { margin: .3rem 0 0; }
dt { color: #666; float: left; clear: left; width: 3.2rem; } dd { margin: 0 0 0 3.4rem; }
"""


def write_report(path: Path, found: Evaluation, title: str, rests_on: Sequence[tuple[str, str]]) -> None:
    """Writes the page: one file with its images in it, no scripts, nothing loaded from elsewhere; and the breakdown
    as breakdown.png beside it."""
    plot = path.with_name("breakdown.png")
    if found.breakdown.strings:
        draw_breakdown(found.breakdown, plot)
    body = "".join(_page(found, title, rests_on, plot if found.breakdown.strings else None))
    temporary = path.with_suffix(".html.partial")
    temporary.write_bytes(body.encode("utf-8", "backslashreplace"))
    temporary.replace(path)


def _page(found: Evaluation, title: str, rests_on: Sequence[tuple[str, str]], plot: Path | None) -> Iterator[str]:
    # All that comes from prompts and engines is escaped; and were it not, the page is told to run nothing.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{STYLE}</style></head><body>'
    yield f"<h1>{escape(title)}</h1>"
    yield from _faults(found)
    yield from _table(found)
    yield "<h2>What the figures rest on</h2><table>"
    yield from (f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rests_on)
    yield "</table>"
    yield from (f'<p class="quiet">Left out: {escape(why)}</p>' for why in found.left_out.values())
    yield from _subsets(found)
    if plot is not None:
        data = base64.b64encode(plot.read_bytes()).decode("ascii")
        yield "<h2>Which strings are read</h2>"
        yield '<p class="quiet">Bars: share of the wanted strings that were read, in any letter case, with 95 %'
        yield " intervals; orange: in their own case. In brackets, how many strings.</p>"
        yield f'<img class="plot" alt="breakdown" src="data:image/png;base64,{data}">'
    for name, group in found.galleries.items():
        yield f"<h2>{escape(name.capitalize())} images, by {escape(found.ranked_by)}</h2>"
        yield '<div class="cards">'
        yield from map(_card, group)
        yield "</div>"
    yield "</body></html>\n"


def _faults(found: Evaluation) -> Iterator[str]:
    if not found.is_partial:
        return
    yield f'<p class="bad"><b>Partial:</b> of {found.images} images {len(found.missing)} are missing and'
    yield f" {len(found.unreadable)} cannot be read; the scores are of the others.</p><details><summary>which</summary>"
    names = [*(f"missing: {name}" for name in found.missing), *(f"unreadable: {name}" for name in found.unreadable)]
    yield "<br>".join(map(escape, names[:MOST_NAMED]))
    yield f"<br>and {len(names) - MOST_NAMED} more (metrics.json)" if len(names) > MOST_NAMED else ""
    yield "</details>"


def _table(found: Evaluation) -> Iterator[str]:
    yield "<table><tr><th>protocol</th><th>metric</th>"
    yield from (f'<th class="n">{mode}</th><th class="quiet">95 % interval</th>' for mode in SCORING_MODES)
    yield "</tr>"
    for protocol in found.protocols:
        for number, metric in enumerate(protocol.metrics):
            yield f"<tr{'' if number else ' class=first'}><td>{escape(protocol.title if not number else '')}</td>"
            yield f"<td>{escape(metric)}{' (less is better)' if metric in protocol.lower_is_better else ''}</td>"
            for mode in SCORING_MODES:
                figure = found.values[protocol.name][mode].get(metric)
                if figure is None:
                    yield '<td class="n">-</td><td></td>'
                else:
                    value, low, high = figure
                    yield f'<td class="n">{value:.4f}</td><td class="quiet">{low:.4f} to {high:.4f}</td>'
            yield "</tr>"
    yield "</table>"
    if found.fidelity:
        yield "<h2>Fidelity</h2><table>"
    for score in found.fidelity:
        interval = "" if score.low is None else f"{score.low:.4f} to {score.high:.4f}"
        yield f'<tr><td>{escape(score.name)}</td><td class="n">{score.value:.4f}</td><td class="quiet">{interval}</td>'
        yield f"<td>{escape(score.protocol)}</td></tr>"
    yield "</table>" if found.fidelity else ""


def _subsets(found: Evaluation) -> Iterator[str]:
    for protocol in found.protocols:
        subsets = found.subsets.get(protocol.name)
        if not subsets:
            continue
        yield f"<h2>{escape(protocol.title)} by subset (corrected)</h2><table><tr><th>subset</th>"
        yield from (f'<th class="n">{escape(metric)}</th>' for metric in protocol.metrics)
        yield "</tr>"
        for subset, values in subsets.items():
            yield f"<tr><td>{escape(subset)}</td>"
            for metric in protocol.metrics:
                value = values["corrected"].get(metric)
                yield f'<td class="n">{"-" if value is None else f"{value:.4f}"}</td>'
            yield "</tr>"
        yield "</table>"


def _card(shown: Shown) -> str:
    data = base64.b64encode(_jpeg(shown)).decode("ascii")
    prompt = shown.image.prompt
    asked = " | ".join(prompt.strings) or "nothing"
    read = " | ".join(line.text for line in reading_order(shown.reading.reading.lines)) or "nothing"
    return (
        f'<figure><div><img alt="" src="data:image/jpeg;base64,{data}"></div><figcaption>{escape(prompt.text)}<dl>'
        f"<dt>asked</dt><dd>{escape(asked)}</dd><dt>read</dt><dd><b>{escape(read)}</b></dd>"
        f"<dt>score</dt><dd>{shown.score:.3f} ({escape(shown.image.name)})</dd></dl></figcaption></figure>"
    )


def _jpeg(shown: Shown) -> bytes:
    assert shown.image.path is not None
    image = Image.fromarray(load_image(shown.image.path))
    scale = CARD_PIXELS / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
