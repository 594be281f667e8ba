"""Images of a benchmark -> read -> scored by every protocol that applies -> metrics, a row an image, a report.

    images --> readings (all cores) --> terms of each protocol and mode --> sums a prompt --> values, intervals
                                     |--> strings read --> breakdown
                                     `--> per_image.parquet

Only sums, and a rank for the galleries, are kept of an image: a few hundred bytes.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vlad.eval.benchmark.breakdown import Breakdown, strings_read
from vlad.eval.benchmark.image_sets import BenchmarkImage
from vlad.eval.benchmark.parallel_ocr import ImageFile, ImageOCR, ocr_images
from vlad.eval.intervals import bootstrap_intervals
from vlad.eval.options import OCROptions
from vlad.eval.protocols import PROTOCOLS
from vlad.eval.protocols.protocol import (
    SCORING_MODES,
    BenchmarkPrompt,
    MetricTerms,
    Protocol,
    ScoringMode,
    add_terms,
    ratios,
)
from vlad.eval.scores import Score
from vlad.metrics.ocr import build_ocr_engine
from vlad.utils.errors import UserError, install_command

GALLERY = 12  # images of each kind
ROWS_AT_ONCE = 1000  # of the table that are held in memory


@dataclass(frozen=True)
class Shown:
    """An image of the galleries: what was asked, what was read, and its score."""

    image: BenchmarkImage
    reading: ImageOCR
    score: float


@dataclass
class Evaluation:
    """What an evaluation has found; `values[protocol][mode][metric]` is value, low and high end of its interval."""

    engine: str
    enlarge: str
    protocols: tuple[Protocol, ...]
    left_out: dict[str, str]
    prompts: int = 0
    images: int = 0
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    values: dict[str, dict[ScoringMode, dict[str, tuple[float, float, float]]]] = field(default_factory=dict)
    subsets: dict[str, dict[str, dict[ScoringMode, dict[str, float]]]] = field(default_factory=dict)
    breakdown: Breakdown = field(default_factory=Breakdown)
    galleries: dict[str, list[Shown]] = field(default_factory=dict)
    ranked_by: str = ""
    # The images that were read, in order; and what other measures say of them.
    scored: list[BenchmarkImage] = field(default_factory=list)
    fidelity: list[Score] = field(default_factory=list)

    @property
    def is_partial(self) -> bool:
        """Whether images are missing or could not be read: the scores are of the others."""
        return bool(self.missing or self.unreadable)


def choose_protocols(
    name: str, prompts: Sequence[BenchmarkPrompt], polygons_hold: bool
) -> tuple[list[Protocol], dict[str, str]]:
    """The protocols of a name ("all" for all that apply), and a sentence for each of the others why it does not apply.

    `polygons_hold` is whether the images were made to follow the prompt file's polygons. Raises UserError when one
    was asked for by its name and does not apply.
    """
    without = [prompt.key for prompt in prompts if not prompt.lines]
    lacks = "the prompt file has none"
    if 0 < len(without) < len(prompts):
        lacks = f"{len(without)} of {len(prompts)} prompts have none, {without[0]!r} first"
    chosen: list[Protocol] = []
    left_out: dict[str, str] = {}
    for protocol in PROTOCOLS.values():
        if name not in (protocol.name, "all"):
            continue
        why = ""
        if protocol.needs_polygons and without:
            why = f"reads each line in its polygon, and {lacks}; take another protocol"
        elif protocol.needs_polygons and not polygons_hold:
            why = "reads each line in its polygon, and the images were not drawn after them; add --use-layouts"
        elif not any(prompt.strings for prompt in prompts) and protocol.name != "mario":
            why = "scores the strings that prompts ask for, and these ask for none; put them in quotation marks"
        if not why:
            chosen.append(protocol)
        elif name == protocol.name:
            raise UserError(f"The protocol {protocol.name} {why}.")
        else:
            left_out[protocol.name] = f"{protocol.title} {why}."
    return chosen, left_out


def evaluate(
    images: Iterable[BenchmarkImage],
    protocols: Sequence[Protocol],
    options: OCROptions,
    out: Path,
    left_out: dict[str, str] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Reads and scores images as they come, grouped by prompt. Writes OUT/per_image.parquet and OUT/readings/."""
    (out / "readings").mkdir(parents=True, exist_ok=True)
    factor = options.enlarge_factor
    enlarged = "until the shorter side has 256 pixels" if factor is None else f"{factor} times"
    found = Evaluation(build_ocr_engine(options.engine).name, enlarged, tuple(protocols), dict(left_out or {}))
    scores = _Scores(protocols)
    with _Table(out / "per_image.parquet", protocols) as table:
        for done, (image, reading) in enumerate(_read(images, protocols, options, out, found), start=1):
            terms = scores.add(image, reading) if reading is not None and reading.fault is None else {}
            table.add(_row(image, reading, terms, found.breakdown))
            if reading is not None and reading.fault is None:
                found.sizes.add((reading.width, reading.height))
                found.scored.append(image)
            if on_progress is not None:
                on_progress(done)
    found.prompts = scores.prompts
    found.values, found.subsets = scores.values(), scores.subset_values()
    for protocol in protocols:
        if found.scored and not scores.asks(protocol.name, "strict"):
            found.left_out[f"{protocol.name}, strict"] = (
                f"{protocol.title}, strict: its scorer finds nothing that these prompts ask for, and would count an"
                " image without text as right."
            )
    found.galleries, found.ranked_by = _galleries(scores, options, out), scores.ranked_by
    return found


def _read(
    images: Iterable[BenchmarkImage], protocols: Sequence[Protocol], options: OCROptions, out: Path, found: Evaluation
) -> Iterator[tuple[BenchmarkImage, ImageOCR | None]]:
    """Every image with its reading (None where it is missing), in order; counts them."""
    with_crops = any(protocol.needs_polygons for protocol in protocols)
    waiting: deque[tuple[BenchmarkImage, bool]] = deque()

    def present() -> Iterator[ImageFile]:
        for image in images:
            is_there = image.path is not None and image.path.is_file()
            waiting.append((image, is_there))
            if is_there:
                yield reading_file(image, with_crops, out)

    readings = ocr_images(present(), options)
    while True:
        # The next image that is on the disk; those before it are missing.
        reading = next(readings, None)
        while waiting:
            image, is_there = waiting.popleft()
            found.images += 1
            if not is_there:
                found.missing.append(f"{image.name}: {image.fault}" if image.fault else image.name)
                yield image, None
                continue
            assert reading is not None
            if reading.fault is not None:
                found.unreadable.append(f"{image.path}: {reading.fault}")
            yield image, reading
            break
        else:
            if reading is None:
                return


def reading_file(image: BenchmarkImage, with_crops: bool, out: Path) -> ImageFile:
    """What is read of an image, and where that is kept."""
    assert image.path is not None
    polygons = tuple(line.polygon for line in image.prompt.lines) if with_crops else ()
    return ImageFile(image.path, out / "readings" / f"{image.name}.json", polygons)


class _Scores:
    """Sums of every protocol and mode, a pair a metric and prompt."""

    def __init__(self, protocols: Sequence[Protocol]) -> None:
        self.protocols = protocols
        self.sums: dict[tuple[str, ScoringMode], dict[str, dict[str, tuple[float, float]]]] = {
            (protocol.name, mode): {} for protocol in protocols for mode in SCORING_MODES
        }
        self.subset_of: dict[str, str] = {}
        self.asked: set[tuple[str, ScoringMode, str]] = set()  # with the subset
        # What the galleries are ordered by: the first protocol's own choice, corrected.
        self.ranked_by = f"{protocols[0].title}, {protocols[0].ranked_by}" if protocols else ""
        self.ranks: list[tuple[float, BenchmarkImage]] = []

    @property
    def prompts(self) -> int:
        """How many prompts have an image that was scored."""
        return len(self.subset_of)

    def add(self, image: BenchmarkImage, reading: ImageOCR) -> dict[tuple[str, ScoringMode], MetricTerms]:
        """Scores an image, and gives its terms."""
        key = image.prompt.key
        self.subset_of[key] = image.prompt.subset
        scored: dict[tuple[str, ScoringMode], MetricTerms] = {}
        for protocol in self.protocols:
            for mode in SCORING_MODES:
                terms = protocol.score(image.prompt, reading.reading, mode)
                scored[protocol.name, mode] = terms
                if protocol.has_targets(image.prompt, mode):
                    self.asked.add((protocol.name, mode, image.prompt.subset))
                add_terms(self.sums[protocol.name, mode].setdefault(key, {}), terms)
        if self.protocols:
            ranked = self.protocols[0]
            rank = scored[ranked.name, "corrected"].get(ranked.ranked_by)
            if rank is not None and rank.denominator:
                self.ranks.append((rank.numerator / rank.denominator, image))
        return scored

    def asks(self, protocol: str, mode: ScoringMode, subset: str | None = None) -> bool:
        """Whether any prompt (of a subset) asks for anything, as a protocol's scorer sees it."""
        return any(key[:2] == (protocol, mode) and subset in (None, key[2]) for key in self.asked)

    def values(self) -> dict[str, dict[ScoringMode, dict[str, tuple[float, float, float]]]]:
        """Every metric with its interval."""
        result: dict[str, dict[ScoringMode, dict[str, tuple[float, float, float]]]] = {}
        for protocol in self.protocols:
            for mode in SCORING_MODES:
                prompts = list(self.sums[protocol.name, mode].values()) if self.asks(protocol.name, mode) else []
                values = protocol.combine(ratios(_total(prompts)))
                intervals = bootstrap_intervals(prompts, protocol.combine) if prompts else {}
                result.setdefault(protocol.name, {})[mode] = {
                    name: (values[name], *intervals[name]) for name in protocol.metrics if name in values
                }
        return result

    def subset_values(self) -> dict[str, dict[str, dict[ScoringMode, dict[str, float]]]]:
        """The metrics of each subset, by protocol and mode; empty where there is only one."""
        subsets = sorted(set(self.subset_of.values()))
        if len(subsets) < 2:
            return {}
        return {
            protocol.name: {
                subset or "other": {
                    mode: protocol.combine(
                        ratios(
                            _total(
                                sums
                                for key, sums in self.sums[protocol.name, mode].items()
                                if self.subset_of[key] == subset and self.asks(protocol.name, mode, subset)
                            )
                        )
                    )
                    for mode in SCORING_MODES
                }
                for subset in subsets
            }
            for protocol in self.protocols
        }


def _total(prompts: Iterable[dict[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    total: dict[str, tuple[float, float]] = {}
    for sums in prompts:
        for name, (amount, of) in sums.items():
            before = total.get(name, (0.0, 0.0))
            total[name] = (before[0] + amount, before[1] + of)
    return total


def _row(
    image: BenchmarkImage,
    reading: ImageOCR | None,
    terms: dict[tuple[str, ScoringMode], MetricTerms],
    breakdown: Breakdown,
) -> dict[str, Any]:
    """An image's row of the table; its strings are counted into the breakdown."""
    status = "missing" if reading is None else "unreadable" if reading.fault is not None else "read"
    row: dict[str, Any] = {
        "id": image.prompt.key,
        "sample": image.sample,
        "subset": image.prompt.subset,
        "prompt": image.prompt.text,
        "file": "" if image.path is None else str(image.path),
        "status": status,
        "wanted": list(image.prompt.strings),
        "read": [],
        "string_read": [],
        "string_read_in_case": [],
    }
    if reading is not None and reading.fault is None:
        strings = strings_read(image.prompt.strings, reading.reading)
        aspect = reading.width / max(1, reading.height)
        breakdown.add(image.prompt.strings, strings, image.polygons(), aspect)
        row["read"] = [line.text for line in reading.reading.lines]
        row["string_read"] = [found for found, _ in strings]
        row["string_read_in_case"] = [in_case for _, in_case in strings]
    for (name, mode), scored in terms.items():
        values = PROTOCOLS[name].combine(
            ratios({metric: (term.numerator, term.denominator) for metric, term in scored.items()})
        )
        row |= {f"{name}.{mode}.{metric}": value for metric, value in values.items()}
    return row


class _Table:
    """per_image.parquet, written a thousand rows at a time, under its name once it is whole."""

    def __init__(self, path: Path, protocols: Sequence[Protocol]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        texts, truths = pa.list_(pa.string()), pa.list_(pa.bool_())
        columns = [(name, pa.string()) for name in ("id", "subset", "prompt", "file", "status")]
        columns[1:1] = [("sample", pa.int64())]
        columns += [("wanted", texts), ("read", texts), ("string_read", truths), ("string_read_in_case", truths)]
        columns += [
            (f"{protocol.name}.{mode}.{metric}", pa.float64())
            for protocol in protocols
            for mode in SCORING_MODES
            for metric in protocol.metrics
        ]
        self.path, self.partial = path, path.with_suffix(".parquet.partial")
        self.writer = parquet.ParquetWriter(self.partial, pa.schema(columns))
        self.rows: list[dict[str, Any]] = []

    def __enter__(self) -> _Table:
        return self

    def add(self, row: dict[str, Any]) -> None:
        """One more row."""
        self.rows.append(row)
        if len(self.rows) == ROWS_AT_ONCE:
            self._write()

    def _write(self) -> None:
        import pyarrow as pa

        self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.writer.schema))
        self.rows = []

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.rows and kind is None:
            self._write()
        self.writer.close()
        if kind is None:
            self.partial.replace(self.path)
        else:
            self.partial.unlink()


def check_table_writer() -> None:
    """Raises UserError when the library that writes per_image.parquet is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError(f"per_image.parquet needs pyarrow; run: {install_command('eval')}.") from error


def _galleries(scores: _Scores, options: OCROptions, out: Path) -> dict[str, list[Shown]]:
    """The best, the median and the worst images, at most GALLERY each; none twice where there are enough."""
    if not scores.ranks:
        return {}
    falls = scores.protocols[0].ranked_by in scores.protocols[0].lower_is_better
    ranked = sorted(scores.ranks, key=lambda rank: rank[0], reverse=not falls)
    size = max(1, min(GALLERY, len(ranked) // 3))
    middle = max(0, (len(ranked) - size) // 2)
    chosen = {"best": ranked[:size], "median": ranked[middle : middle + size], "worst": ranked[-size:][::-1]}
    with_crops = any(protocol.needs_polygons for protocol in scores.protocols)
    result: dict[str, list[Shown]] = {}
    for name, group in chosen.items():
        files = [reading_file(image, with_crops, out) for _, image in group]
        # Kept on the disk by now.
        readings = ocr_images(files, replace(options, workers=1))
        result[name] = [Shown(image, reading, score) for (score, image), reading in zip(group, readings, strict=True)]
    return result


def metrics_json(found: Evaluation, about: dict[str, Any]) -> dict[str, Any]:
    """All figures as plain values, with what they rest on."""
    return {
        **about,
        "engine": found.engine,
        "enlarged": found.enlarge,
        "prompts": found.prompts,
        "images": found.images,
        "scored": len(found.scored),
        "sizes": sorted(f"{width} x {height}" for width, height in found.sizes),
        "partial": found.is_partial,
        "missing": found.missing,
        "unreadable": found.unreadable,
        "left_out": found.left_out,
        "protocols": {
            protocol.name: {
                mode: {
                    name: {"value": value, "low": low, "high": high}
                    for name, (value, low, high) in found.values[protocol.name][mode].items()
                }
                for mode in SCORING_MODES
            }
            for protocol in found.protocols
        },
        "subsets": found.subsets,
        "fidelity": [asdict(score) for score in found.fidelity],
        "breakdown": found.breakdown.to_json(),
    }


def write_json(path: Path, content: Any) -> None:
    """Writes JSON under its name once it is whole."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
