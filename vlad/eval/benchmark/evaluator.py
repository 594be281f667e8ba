"""Evaluates a benchmark's images: OCR, every applicable protocol's metrics, a row an image, a breakdown by text.

    images --> OCR (all cores) --> terms of each protocol and mode --> sums a prompt --> metrics, intervals
                               |--> strings read --> breakdown
                               `--> per_image.parquet

Of an image only its terms and a rank for the galleries are kept: a few hundred bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from vlad.eval.benchmark.breakdown import Breakdown, strings_read
from vlad.eval.benchmark.image_sets import BenchmarkImage
from vlad.eval.benchmark.parallel_ocr import ImageFile, ImageOCR, ocr_images
from vlad.eval.benchmark.per_image_table import PerImageTable
from vlad.eval.intervals import bootstrap_intervals
from vlad.eval.options import OCROptions
from vlad.eval.protocols import PROTOCOLS
from vlad.eval.protocols.protocol import (
    SCORING_MODES,
    BenchmarkPrompt,
    MetricTerms,
    Protocol,
    ScoringMode,
    Sums,
    add_terms,
    ratios,
)
from vlad.metrics.ocr import build_ocr_engine
from vlad.utils.errors import UserError

GALLERY = 12  # images of each kind


class Estimate(NamedTuple):
    """A metric with both ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class FidelityScore:
    """FID, KID or CLIPScore: what it rests on, its value, and both ends of its interval where it has one."""

    name: str
    protocol: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class GalleryImage:
    """An image of the galleries with its OCR result and its score."""

    image: BenchmarkImage
    ocr: ImageOCR
    score: float


@dataclass
class Evaluation:
    """The results: `metrics[protocol][mode][name]`, the same by subset, and why other scores are left out."""

    engine: str
    enlarge: str
    protocols: tuple[Protocol, ...]
    left_out: dict[str, str]
    prompts: int = 0
    images: int = 0
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    metrics: dict[str, dict[ScoringMode, dict[str, Estimate]]] = field(default_factory=dict)
    subsets: dict[str, dict[str, dict[ScoringMode, dict[str, float]]]] = field(default_factory=dict)
    breakdown: Breakdown = field(default_factory=Breakdown)
    galleries: dict[str, list[GalleryImage]] = field(default_factory=dict)
    ranked_by: str = ""
    scored: list[BenchmarkImage] = field(default_factory=list)  # the images that were read, in order
    fidelity: list[FidelityScore] = field(default_factory=list)

    @property
    def is_partial(self) -> bool:
        """Whether images are missing or could not be read: the scores are of the others."""
        return bool(self.missing or self.unreadable)

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        return {
            "engine": self.engine,
            "enlarged": self.enlarge,
            "prompts": self.prompts,
            "images": self.images,
            "scored": len(self.scored),
            "sizes": sorted(f"{width} x {height}" for width, height in self.sizes),
            "partial": self.is_partial,
            "missing": self.missing,
            "unreadable": self.unreadable,
            "left_out": self.left_out,
            "protocols": {
                name: {
                    mode: {metric: estimate._asdict() for metric, estimate in metrics.items()}
                    for mode, metrics in modes.items()
                }
                for name, modes in self.metrics.items()
            },
            "subsets": self.subsets,
            "fidelity": [asdict(score) for score in self.fidelity],
            "breakdown": self.breakdown.to_json(),
        }


def choose_protocols(
    name: str, prompts: Sequence[BenchmarkPrompt], follows_polygons: bool
) -> tuple[list[Protocol], dict[str, str]]:
    """The protocols of a name ("all" for all that apply), and for each other one why it does not apply.

    `follows_polygons` says whether the images were generated with the prompt file's layouts. Raises UserError where a
    protocol that was chosen by its name does not apply.
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
        reason = ""
        if protocol.needs_polygons and without:
            reason = f"reads each line in its polygon, and {lacks}; take another protocol"
        elif protocol.needs_polygons and not follows_polygons:
            reason = "reads each line in its polygon, and the images do not follow polygons; add --use-layouts"
        elif not any(prompt.strings for prompt in prompts) and protocol.name != "mario":
            reason = "scores target texts, and these prompts have none; put them in quotation marks"
        if not reason:
            chosen.append(protocol)
        elif name == protocol.name:
            raise UserError(f"The protocol {protocol.name} {reason}.")
        else:
            left_out[protocol.name] = f"{protocol.title} {reason}."
    return chosen, left_out


def evaluate(
    images: Iterable[BenchmarkImage],
    protocols: Sequence[Protocol],
    options: OCROptions,
    out: Path,
    left_out: dict[str, str] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Reads and scores images, grouped by prompt, as they come. Writes OUT/per_image.parquet and OUT/readings/."""
    (out / "readings").mkdir(parents=True, exist_ok=True)
    factor = options.enlarge_factor
    enlarged = "until the shorter side has 256 pixels" if factor is None else f"{factor} times"
    result = Evaluation(build_ocr_engine(options.engine).name, enlarged, tuple(protocols), dict(left_out or {}))
    scores = _Scores(protocols)
    with PerImageTable(out / "per_image.parquet", protocols) as table:
        for done, (image, ocr) in enumerate(_with_ocr(images, protocols, options, out, result), start=1):
            terms: dict[tuple[str, ScoringMode], MetricTerms] = {}
            if ocr is not None and ocr.fault is None:
                terms = scores.add(image, ocr)
                result.sizes.add((ocr.width, ocr.height))
                result.scored.append(image)
            table.add(_row(image, ocr, terms, result.breakdown))
            if on_progress is not None:
                on_progress(done)
    result.prompts = scores.prompts
    result.metrics, result.subsets = scores.metrics(), scores.subset_metrics()
    for protocol in protocols:
        if result.scored and not scores.has_targets(protocol.name, "strict"):
            result.left_out[f"{protocol.name}, strict"] = (
                f"{protocol.title}, strict: its scorer finds no target text in these prompts, and would count an image"
                " without text as right."
            )
    result.galleries, result.ranked_by = _galleries(scores, options, out), scores.ranked_by
    return result


def _with_ocr(
    images: Iterable[BenchmarkImage],
    protocols: Sequence[Protocol],
    options: OCROptions,
    out: Path,
    result: Evaluation,
) -> Iterator[tuple[BenchmarkImage, ImageOCR | None]]:
    """Every image with what was read in it (None where it is missing), in order; counts them in `result`."""
    with_crops = any(protocol.needs_polygons for protocol in protocols)
    waiting: deque[tuple[BenchmarkImage, bool]] = deque()

    def present() -> Iterator[ImageFile]:
        for image in images:
            exists = image.path is not None and image.path.is_file()
            waiting.append((image, exists))
            if exists:
                yield _image_file(image, with_crops, out)

    ocr_results = ocr_images(present(), options)
    while True:
        # Of the next image that exists; those before it are missing.
        ocr = next(ocr_results, None)
        while waiting:
            image, exists = waiting.popleft()
            result.images += 1
            if not exists:
                result.missing.append(f"{image.name}: {image.fault}" if image.fault else image.name)
                yield image, None
                continue
            assert ocr is not None
            if ocr.fault is not None:
                result.unreadable.append(f"{image.path}: {ocr.fault}")
            yield image, ocr
            break
        else:
            if ocr is None:
                return


def _image_file(image: BenchmarkImage, with_crops: bool, out: Path) -> ImageFile:
    assert image.path is not None
    polygons = tuple(line.polygon for line in image.prompt.lines) if with_crops else ()
    return ImageFile(image.path, out / "readings" / f"{image.name}.json", polygons)


class _Scores:
    """Sums of every protocol and mode, by prompt and metric."""

    def __init__(self, protocols: Sequence[Protocol]) -> None:
        self.protocols = protocols
        self.sums: dict[tuple[str, ScoringMode], dict[str, Sums]] = {
            (protocol.name, mode): {} for protocol in protocols for mode in SCORING_MODES
        }
        self.subset_of: dict[str, str] = {}
        self.with_targets: set[tuple[str, ScoringMode, str]] = set()  # protocol, mode, subset
        # The galleries are ordered by the first protocol's own choice, corrected.
        self.ranked_by = f"{protocols[0].title}, {protocols[0].ranked_by}" if protocols else ""
        self.ranks: list[tuple[float, BenchmarkImage]] = []

    @property
    def prompts(self) -> int:
        """How many prompts have an image that was scored."""
        return len(self.subset_of)

    def add(self, image: BenchmarkImage, ocr: ImageOCR) -> dict[tuple[str, ScoringMode], MetricTerms]:
        """Scores an image and returns its terms."""
        prompt = image.prompt
        self.subset_of[prompt.key] = prompt.subset
        scored: dict[tuple[str, ScoringMode], MetricTerms] = {}
        for protocol in self.protocols:
            for mode in SCORING_MODES:
                terms = protocol.score(prompt, ocr.result, mode)
                scored[protocol.name, mode] = terms
                if protocol.has_targets(prompt, mode):
                    self.with_targets.add((protocol.name, mode, prompt.subset))
                add_terms(self.sums[protocol.name, mode].setdefault(prompt.key, {}), terms)
        if self.protocols:
            first = self.protocols[0]
            rank = scored[first.name, "corrected"].get(first.ranked_by)
            if rank is not None and rank.denominator:
                self.ranks.append((rank.numerator / rank.denominator, image))
        return scored

    def has_targets(self, protocol: str, mode: ScoringMode, subset: str | None = None) -> bool:
        """Whether a protocol's scorer finds a target text in any prompt (of a subset)."""
        return any(key[:2] == (protocol, mode) and subset in (None, key[2]) for key in self.with_targets)

    def metrics(self) -> dict[str, dict[ScoringMode, dict[str, Estimate]]]:
        """Every metric with its interval."""
        result: dict[str, dict[ScoringMode, dict[str, Estimate]]] = {}
        for protocol in self.protocols:
            for mode in SCORING_MODES:
                sums = list(self.sums[protocol.name, mode].values()) if self.has_targets(protocol.name, mode) else []
                values = protocol.combine(ratios(_total(sums)))
                intervals = bootstrap_intervals(sums, protocol.combine) if sums else {}
                result.setdefault(protocol.name, {})[mode] = {
                    name: Estimate(values[name], *intervals[name]) for name in protocol.metrics if name in values
                }
        return result

    def subset_metrics(self) -> dict[str, dict[str, dict[ScoringMode, dict[str, float]]]]:
        """The metrics by protocol, subset and mode; empty where there is only one subset."""
        subsets = sorted(set(self.subset_of.values()))
        if len(subsets) < 2:
            return {}
        return {
            protocol.name: {
                subset or "other": {mode: self._subset_metrics(protocol, mode, subset) for mode in SCORING_MODES}
                for subset in subsets
            }
            for protocol in self.protocols
        }

    def _subset_metrics(self, protocol: Protocol, mode: ScoringMode, subset: str) -> dict[str, float]:
        by_prompt = self.sums[protocol.name, mode] if self.has_targets(protocol.name, mode, subset) else {}
        return protocol.combine(
            ratios(_total(sums for key, sums in by_prompt.items() if self.subset_of[key] == subset))
        )


def _total(prompts: Iterable[Sums]) -> Sums:
    total: Sums = {}
    for sums in prompts:
        for name, (numerator, denominator) in sums.items():
            before = total.get(name, (0.0, 0.0))
            total[name] = (before[0] + numerator, before[1] + denominator)
    return total


def _row(
    image: BenchmarkImage,
    ocr: ImageOCR | None,
    terms: dict[tuple[str, ScoringMode], MetricTerms],
    breakdown: Breakdown,
) -> dict[str, Any]:
    """An image's row of the table; its strings are counted into the breakdown."""
    row: dict[str, Any] = {
        "id": image.prompt.key,
        "sample": image.sample,
        "subset": image.prompt.subset,
        "prompt": image.prompt.text,
        "file": "" if image.path is None else str(image.path),
        "status": "missing" if ocr is None else "unreadable" if ocr.fault is not None else "read",
        "wanted": list(image.prompt.strings),
        "read": [],
        "string_read": [],
        "string_read_in_case": [],
    }
    if ocr is not None and ocr.fault is None:
        strings = strings_read(image.prompt.strings, ocr.result)
        aspect = ocr.width / max(1, ocr.height)
        breakdown.add(image.prompt.strings, strings, image.polygons(), aspect)
        row["read"] = [line.text for line in ocr.result.lines]
        row["string_read"] = [read for read, _ in strings]
        row["string_read_in_case"] = [in_case for _, in_case in strings]
    for (name, mode), scored in terms.items():
        sums: Sums = {}
        add_terms(sums, scored)
        values = PROTOCOLS[name].combine(ratios(sums))
        row |= {f"{name}.{mode}.{metric}": value for metric, value in values.items()}
    return row


def _galleries(scores: _Scores, options: OCROptions, out: Path) -> dict[str, list[GalleryImage]]:
    """The best, the median and the worst images, at most GALLERY each; none twice where there are enough."""
    if not scores.ranks:
        return {}
    first = scores.protocols[0]
    ranked = sorted(scores.ranks, key=lambda rank: rank[0], reverse=first.ranked_by not in first.lower_is_better)
    size = max(1, min(GALLERY, len(ranked) // 3))
    middle = max(0, (len(ranked) - size) // 2)
    chosen = {"best": ranked[:size], "median": ranked[middle : middle + size], "worst": ranked[-size:][::-1]}
    with_crops = any(protocol.needs_polygons for protocol in scores.protocols)
    result: dict[str, list[GalleryImage]] = {}
    for name, group in chosen.items():
        files = [_image_file(image, with_crops, out) for _, image in group]
        stored = ocr_images(files, replace(options, workers=1))  # from OUT/readings by now
        result[name] = [GalleryImage(image, ocr, score) for (score, image), ocr in zip(group, stored, strict=True)]
    return result
