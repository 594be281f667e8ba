"""The HTML page of a lint report: what the set holds, findings with examples, histograms, images of samples."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from html import escape
from pathlib import Path

from vlad.data.lint.contact_sheets import Card
from vlad.data.lint.lint_report import LintReport, Table, place_of, summary_rows, tables
from vlad.data.lint.sample_checks import KINDS

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #1d1d1f; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.bar { background: #3b7dd8; height: .8rem; } .charts { display: flex; flex-wrap: wrap; gap: 0 3rem; }
.ok { color: #14752f; } .bad { color: #b3261e; } .quiet { color: #666; } code { overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid #ddd; border-radius: 6px; overflow: hidden; }
figure div { background: #f2f2f4; display: flex; align-items: center; justify-content: center; height: 220px; }
figure img { max-width: 100%; max-height: 220px; }
figcaption { padding: .5rem .7rem; font-size: .8rem; overflow-wrap: anywhere; }
figcaption ol { margin: .3rem 0 0; padding-left: 1.2rem; } details { margin: .2rem 0 .6rem 1rem; }
"""


def write_page(report: LintReport, path: Path) -> None:
    """Writes the page: one file with its images in it, no scripts, nothing loaded from elsewhere."""
    # Keys may hold what is no text.
    data = "".join(_page(report)).encode("utf-8", "backslashreplace")
    temporary = path.with_suffix(".html.partial")
    temporary.write_bytes(data)
    temporary.replace(path)


def _page(report: LintReport) -> Iterator[str]:
    # All that comes from a shard is escaped; and were it not, the page is told to run nothing.
    title = escape(f"Shards at {report.shard_set.pattern}")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{STYLE}</style></head><body>'
    yield f"<h1>{title}</h1>"
    if report.interrupted:
        yield '<p class="bad">Interrupted: this is about the part that was read.</p>'
    yield "<table>"
    yield from (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in summary_rows(report))
    yield "</table><h2>Findings</h2>"
    if report.is_sound:
        yield '<p class="ok">None.</p>'
    for kind, description in KINDS.items():
        if not report.found[kind]:
            continue
        yield f'<div><b class="bad">{report.found[kind]:,}</b> {escape(description)}</div><details><summary>examples'
        yield "</summary><table>"
        for finding in report.examples[kind]:
            place = place_of(finding).removesuffix(": ")
            yield f"<tr><td><code>{escape(place)}</code></td><td>{escape(finding.detail)}</td></tr>"
        yield "</table></details>"
    yield '<div class="charts">'
    for chart in tables(report):
        yield from _chart(chart)
    yield "</div>"
    for heading, group in report.cards():
        yield f'<h2>{escape(heading[:1].upper() + heading[1:])}</h2><div class="cards">'
        for card in group:
            yield from _figure(card)
        yield "</div>"
    yield '<p class="quiet">Green: legible. Grey: marked as not legible, ignored in training. Red: see findings.</p>'
    yield "</body></html>\n"


def _chart(chart: Table) -> Iterator[str]:
    most = max(count for _, count in chart.rows)
    yield f"<section><h2>{escape(chart.heading[:1].upper() + chart.heading[1:])}</h2>"
    yield f'<p class="quiet">{escape(chart.note)}</p>' if chart.note else ""
    yield "<table>"
    for name, count in chart.rows:
        bar = f'<div class="bar" style="width:{12 * count / most:.2f}rem"></div>'
        yield f'<tr><td class="n">{escape(name)}</td><td class="n">{count:,}</td><td>{bar}</td></tr>'
    yield "</table></section>"


def _figure(card: Card) -> Iterator[str]:
    data = base64.b64encode(card.jpeg).decode("ascii")
    yield f'<figure><div><img alt="" src="data:image/jpeg;base64,{data}"></div><figcaption>'
    yield f'<code>{escape(card.key)}</code> <span class="quiet">{escape(card.shard.rpartition("/")[2])}</span><br>'
    yield escape(card.caption)
    if card.lines:
        yield "<ol>" + "".join(f"<li>{escape(line)}</li>" for line in card.lines) + "</ol>"
    yield from (
        f'<div class="bad" style="all:revert;color:#b3261e">{escape(detail)}</div>' for _, detail in card.faults
    )
    yield "</figcaption></figure>"
