"""The report of a lint run: counts, findings and cards, as text for a terminal and as an HTML page."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from vlad.data.lint.contact_sheets import Card
from vlad.data.lint.options import LintOptions
from vlad.data.lint.sample_checks import KINDS, Finding
from vlad.data.lint.sample_statistics import HEIGHT_EDGES_PERCENT, HEIGHT_EDGES_PIXELS, LENGTH_EDGES, Counts, bin_names
from vlad.data.lint.shard_checks import ShardSet
from vlad.utils.errors import counted
from vlad.utils.foreign_text import printable_line
from vlad.utils.html import render, write_page

TERMINAL_EXAMPLES = 5  # of each kind of finding


@dataclass
class LintReport:
    """What a run has found in a set; `interrupted`: only a part of the set was checked."""

    shard_set: ShardSet
    options: LintOptions
    quick: bool = False
    interrupted: bool = False
    shards: int = 0
    counts: Counts = field(default_factory=Counts)
    found: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Finding]] = field(default_factory=dict)
    # Cards of sound samples (at most options.images, a heap by -rank), and of findings by kind.
    sound_cards: list[tuple[float, int, Card]] = field(default_factory=list)
    finding_cards: dict[str, list[Card]] = field(default_factory=dict)
    sound_card_count: int = 0
    # Lines by script: from the manifests, in a quick report.
    scripts: Counter[str] = field(default_factory=Counter)

    @property
    def samples(self) -> int:
        """The number of samples, as far as known."""
        return self.counts.samples

    @property
    def is_sound(self) -> bool:
        """Whether there are no findings."""
        return not self.found

    def note(self, finding: Finding) -> None:
        """Counts a finding, and keeps it while there are few of its kind."""
        self.found[finding.kind] += 1
        kept = self.examples.setdefault(finding.kind, [])
        if len(kept) < self.options.examples:
            kept.append(finding)

    def keep_card(self, card: Card) -> None:
        """Keeps a card if the report needs it."""
        if not card.faults:
            self.sound_card_count += 1
            heapq.heappush(self.sound_cards, (-card.rank, self.sound_card_count, card))
            if len(self.sound_cards) > self.options.images:
                heapq.heappop(self.sound_cards)
        for kind in dict.fromkeys(kind for kind, _ in card.faults):
            kept = self.finding_cards.setdefault(kind, [])
            if len(kept) < self.options.images_per_kind:
                kept.append(card)

    @property
    def card_below(self) -> float:
        """The rank below which the report needs a card of a sound sample."""
        if not self.options.images:
            return 0.0
        return 1.0 if len(self.sound_cards) < self.options.images else -self.sound_cards[0][0]

    @property
    def wanted_cards(self) -> dict[str, int]:
        """The number of cards that the report still needs of each kind of finding."""
        return {kind: self.options.images_per_kind - len(self.finding_cards.get(kind, ())) for kind in KINDS}

    def cards(self) -> list[tuple[str, list[Card]]]:
        """Headings with their cards."""
        sound = [card for _, _, card in sorted(self.sound_cards, key=lambda entry: -entry[0])]
        groups = [("sound samples from the whole set", sound)]
        groups += [(description, self.finding_cards.get(kind, [])) for kind, description in KINDS.items()]
        return [(heading, cards) for heading, cards in groups if cards]

    @property
    def too_small_for(self) -> str | None:
        """Why the set does not suffice for the launch; None: it does, or there is none."""
        launch = self.options.launch
        if launch is None or self.samples >= launch.needed_samples:
            return None
        return (
            f"{counted(self.samples, 'sample')} {'is' if self.samples == 1 else 'are'} too few for"
            f" {counted(launch.ranks, 'rank')} x batches of {launch.batch_size}: at least {launch.needed_samples}; add"
            " samples, or lower one of the two"
        )


def summary_rows(report: LintReport) -> list[tuple[str, str]]:
    """The set in figures, as names and values."""
    counts, total = report.counts, len(report.shard_set.shards)
    rows = [
        ("shards", f"{report.shards:,}" + (f" of {total:,}" if report.shards != total else "")),
        ("samples", f"{counts.samples:,}" + ("" if report.quick else f", {counts.sound:,} of them without findings")),
        ("size", f"{counts.bytes / 1e6:,.1f} MB"),
    ]
    if not report.quick or counts.lines:
        rows.append(("lines of text", f"{counts.lines:,}, {counts.valid_lines:,} of them legible (valid)"))
    if not report.quick:
        rows.append(("samples without legible text", f"{counts.without_text:,}"))
    if report.scripts:
        rows.append(("lines by script", ", ".join(f"{name} {count:,}" for name, count in report.scripts.most_common())))
    launch = report.options.launch
    if launch is not None:
        verdict = "feasible" if report.too_small_for is None else "too few samples"
        rows.append(("launch", f"{launch}: needs {launch.needed_samples:,} samples: {verdict}"))
    return rows


@dataclass(frozen=True)
class Table:
    """Named counts under a heading."""

    heading: str
    rows: tuple[tuple[str, int], ...]
    note: str = ""

    @property
    def largest(self) -> int:
        """The largest count, the length of a full bar."""
        return max(count for _, count in self.rows)


def tables(report: LintReport) -> list[Table]:
    """Histograms and bucket occupancy; none in a quick report, which reads no samples."""
    if report.quick:
        return []
    counts, options = report.counts, report.options
    shown = [
        ("legible lines by characters", bin_names(LENGTH_EDGES), counts.lengths),
        ("legible lines by height", bin_names(HEIGHT_EDGES_PIXELS, " px"), counts.heights_pixels),
        (
            "legible lines by share of the image's height",
            bin_names(HEIGHT_EDGES_PERCENT, " %"),
            counts.heights_percent,
        ),
    ]
    result = []
    for heading, names, counter in shown:
        used = [number for number in range(len(names)) if counter[number]]
        if used:  # from the first non-empty bin to the last
            bins = range(used[0], used[-1] + 1)
            result.append(Table(heading, tuple((names[number], counter[number]) for number in bins)))
    if counts.fontless:
        result.append(Table("lines without a font, by script", tuple(counts.fontless.most_common())))
    buckets = options.buckets
    rows = tuple((f"{bucket.width} x {bucket.height}", counts.buckets[i]) for i, bucket in enumerate(buckets))
    filled = tuple(row for row in rows if row[1])
    if filled:
        notes = [f"{len(rows) - len(filled)} of {len(rows)} shapes are empty"] if len(filled) < len(rows) else []
        size = options.launch.batch_size if options.launch is not None else None
        small = sum(count < size for _, count in filled) if size is not None else 0
        if small:
            notes.append(f"shapes with fewer samples than one batch of {size}: {small}")
        resolutions = ", ".join(map(str, options.resolutions))
        result.append(Table(f"samples by training shape (resolutions: {resolutions})", filled, "; ".join(notes)))
    return result


def text_report(report: LintReport) -> str:
    """The report for a terminal."""
    lines = []
    if report.interrupted:
        lines += ["Interrupted: this report covers what was read.", ""]
    width = max(len(name) for name, _ in summary_rows(report))
    lines += [f"{name:<{width}}  {printable_line(value)}" for name, value in summary_rows(report)]
    for table in tables(report):
        total = sum(count for _, count in table.rows)
        lines += ["", table.heading + (f" ({table.note})" if table.note else "")]
        width = max(len(name) for name, _ in table.rows)
        for name, count in table.rows:
            bar = "#" * round(40 * count / table.largest)
            lines.append(f"  {name:>{width}}  {count:>9,}  {count / total:>6.1%}  {bar}".rstrip())
    lines.append("")
    if report.is_sound:
        whole = "the manifests are sound (no shard was read)." if report.quick else "the set is sound."
        lines.append(f"No findings{' so far.' if report.interrupted else ': ' + whole}")
    for kind, description in KINDS.items():
        if not report.found[kind]:
            continue
        lines.append(f"{report.found[kind]:>7,}  {description}")
        shown = report.examples[kind][:TERMINAL_EXAMPLES]
        for finding in shown:
            place = f"{finding.place}: " if finding.place else ""
            lines.append(f"         {printable_line(place)}{printable_line(finding.detail)}")
        if report.found[kind] > len(shown):
            lines.append(f"         ... and {report.found[kind] - len(shown):,} more")
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode("utf-8")


def write_lint_page(report: LintReport, path: Path) -> None:
    """Writes the HTML page, one file with its images in it."""
    page = render(
        Path(__file__).with_name("lint_page.html"),
        title=f"Shards at {report.shard_set.pattern}",
        report=report,
        summary=summary_rows(report),
        tables=tables(report),
        kinds=KINDS,
    )
    write_page(path, page)
