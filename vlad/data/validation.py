"""Whether shards are sound: every sample looked at, what is wrong told with shard and key, what they hold counted.

    pattern -> list_set -> scanned shards (headers) -> chunks of samples -> Inspection of each -> Report

Nothing is changed. Memory is bounded on a set of any size: counts, a few examples of every finding, a few pictures;
keys go through files on disk.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import tempfile
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
from PIL import Image

from vlad.data import storage
from vlad.data.buckets import Bucket, build_buckets, nearest_bucket
from vlad.data.contact_sheets import Card, draw_card
from vlad.data.decoding import (
    MAX_PICTURE_PIXELS,
    MEMBER_KINDS,
    PICTURE_FORMATS,
    BadSample,
    decode_picture,
    decode_record,
    picture_size,
)
from vlad.data.parallel import available_cores, map_in_order
from vlad.data.retries import FetchOptions, StorageError
from vlad.data.shard_cache import ShardCache
from vlad.data.shards import NOT_A_MANIFEST, manifest_entries
from vlad.data.tars import SampleMembers, TarTable, read_sample, scan_tar
from vlad.errors import UserError
from vlad.layout.fonts import missing_glyphs
from vlad.layout.polygons import polygon_area, quad_of
from vlad.records import Polygon, Sample, TextLine

# What can be wrong, in the order it is told.
KINDS = {
    "shard": "shards that cannot be read, or are damaged",
    "manifest": "shards that are not what their manifest says",
    "name": "members with absolute or climbing names, links, devices (never read)",
    "member": "members of kinds that are never read",
    "double": "samples whose members are too large or stand there twice",
    "incomplete": "samples without a picture or without a record",
    "bomb": "pictures over the pixel limit (never decoded)",
    "picture": "pictures that do not decode",
    "record": "records that cannot be read",
    "caption": "missing captions",
    "text": "lines without text",
    "outside": "polygons that leave the picture",
    "crossing": "polygons that cross themselves",
    "flat": "polygons without area",
    "font": "lines with characters that no font of ours draws (training ignores them)",
    "duplicate": "keys that stand there more than once",
    "launch": "launches that the set is too small for",
}
OUTSIDE_TOLERANCE = 1e-3  # of the picture: what rounding does
LEAST_AREA = 1e-6
MAX_POLYGON_POINTS = 200  # the test for crossings is quadratic
MOST_PIXELS = 16384  # of a side of a training picture
CHUNK_SAMPLES = 64
FETCHED_AHEAD = 4  # shards on their way while others are looked at
LENGTH_EDGES = (1, 2, 3, 5, 9, 17, 33, 65)
HEIGHT_EDGES_PIXELS = (0, 4, 8, 16, 32, 64, 128, 256)
HEIGHT_EDGES_PERCENT = (0, 1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class ValidationOptions:
    """What is asked about a set of shards."""

    # Sides of the squares whose area pictures are trained at; None of them: no buckets are counted.
    resolutions: tuple[int, ...] = (512,)
    max_aspect: float = 2.0
    bucket_step_pixels: int = 64
    # A launch to be judged; None: none.
    launch: Launch | None = None
    # Kept of every kind of finding; pictures of sound samples drawn, and of each kind of finding.
    examples: int = 20
    pictures: int = 25
    pictures_a_kind: int = 6

    def __post_init__(self) -> None:
        if not 1 <= self.max_aspect <= 16:
            raise UserError(f"--max-aspect must be from 1 to 16, not {self.max_aspect}.")
        if not all(1 <= pixels <= MOST_PIXELS for pixels in (self.bucket_step_pixels, *self.resolutions)):
            raise UserError(f"--resolutions and --bucket-step must be from 1 to {MOST_PIXELS} pixels.")

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The shapes of all resolutions. Raises UserError for one that fits no bucket step."""
        return build_buckets(self.resolutions, self.max_aspect, self.bucket_step_pixels) if self.resolutions else ()


@dataclass(frozen=True)
class Launch:
    """A run that shall read the set."""

    ranks: int = 1
    batch_size: int = 64

    def __post_init__(self) -> None:
        if min(self.ranks, self.batch_size) < 1:
            raise UserError("--ranks and --batch-size must be at least 1.")

    @property
    def needed_samples(self) -> int:
        """A batch for every rank. Shards and workers may be any number: any worker makes any batch of its rank."""
        return self.ranks * self.batch_size

    def __str__(self) -> str:
        return f"{self.ranks} ranks x batches of {self.batch_size}, any shards and workers"


@dataclass(frozen=True)
class Finding:
    """Something wrong; `key` is None where it is about a whole shard, `shard` where it is about the whole set."""

    kind: str
    shard: str | None
    key: str | None
    detail: str


# The set


@dataclass(frozen=True)
class ListedShard:
    """A shard, with what its manifest says of it (None: nothing)."""

    path: str
    samples: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    statistics: dict[str, Any] | None = None


@dataclass(frozen=True)
class ShardSet:
    """All shards of a pattern, and what is wrong with their manifests."""

    pattern: str
    shards: tuple[ListedShard, ...]
    manifests: int
    findings: tuple[Finding, ...]

    @property
    def listed_samples(self) -> int | None:
        """How many samples the manifests name; None where one does not."""
        counts = [shard.samples for shard in self.shards]
        return None if None in counts else sum(count for count in counts if count is not None)


def list_set(pattern: str, cache: FetchOptions | None = None) -> ShardSet:
    """Finds the shards and reads their manifests. Raises UserError where there are no shards."""
    # Paths in one spelling: they are looked up in the manifests.
    paths = tuple(path if storage.is_url(path) else str(Path(path)) for path in storage.expand(pattern, cache))
    listed: dict[str, ListedShard] = {}
    findings: list[Finding] = []
    manifests = 0
    for directory in sorted({storage.parent(path) for path in paths}):
        manifest = storage.join(directory, storage.MANIFEST)
        if not _is_there(manifest, cache):
            continue
        manifests += 1
        try:
            said = manifest_entries(storage.read_bytes(manifest, cache), directory)
        except StorageError as error:
            findings.append(Finding("manifest", storage.shown(manifest), None, str(error)))
            continue
        except NOT_A_MANIFEST as error:
            findings.append(Finding("manifest", storage.shown(manifest), None, f"it is no shard manifest: {error!r}"))
            continue
        entries = {path: ListedShard(**vars(entry)) for path, entry in said.items()}
        listed |= entries
        if not pattern.endswith(".tar") and not any(character in pattern for character in "*?[{"):
            findings += [
                Finding("manifest", storage.shown(path), None, "the manifest lists it, but it is not there")
                for path in entries.keys() - set(paths)
            ]
        findings += [
            Finding("manifest", storage.shown(path), None, "the manifest beside it does not list it")
            for path in paths
            if storage.parent(path) == directory and path not in entries
        ]
    shards = tuple(listed.get(path, ListedShard(path)) for path in paths)
    return ShardSet(storage.shown(pattern), shards, manifests, tuple(findings))


def _is_there(manifest: str, cache: FetchOptions | None) -> bool:
    try:
        return storage.exists(manifest, cache)
    except StorageError:  # stores refuse to say of what is not there; were they down, the shards would tell
        return False


# One sample


@dataclass
class Counts:
    """What samples hold, as sums."""

    samples: int = 0
    sound: int = 0
    bytes: int = 0
    lines: int = 0
    valid_lines: int = 0
    without_text: int = 0  # samples that have no valid line
    lengths: Counter[int] = field(default_factory=Counter)  # valid lines by the bin of their characters
    heights_pixels: Counter[int] = field(default_factory=Counter)
    heights_percent: Counter[int] = field(default_factory=Counter)  # of the picture's height
    buckets: Counter[int] = field(default_factory=Counter)  # samples by the number of their bucket
    # Lines that no font of ours draws, by the script of the first character that is missing ("cjk", "thai").
    fontless: Counter[str] = field(default_factory=Counter)

    def add(self, other: Counts) -> None:
        """Adds the sums of other samples."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)


@dataclass
class Inspection:
    """What was found in some samples of one shard."""

    shard: int
    counts: Counts = field(default_factory=Counts)
    keys: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    ends_shard: bool = False


def crosses_itself(polygon: Polygon) -> bool:
    """Whether two sides of the polygon cross each other at a point inside both."""
    points = np.array(polygon, dtype=np.float64)
    following = np.roll(points, -1, axis=0)

    def turn(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return np.sign(
            (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])
        )

    first, second = np.triu_indices(len(points), k=1)
    a, b, c, d = points[first], following[first], points[second], following[second]
    return bool(((turn(a, b, c) * turn(a, b, d) < 0) & (turn(c, d, a) * turn(c, d, b) < 0)).any())


def line_faults(line: TextLine) -> Iterator[tuple[str, str]]:
    """What is wrong with a line: kinds and details."""
    name = repr(line.text)
    if line.valid and not line.text.strip():
        yield "text", "a line marked as valid has no text"
    if line.valid and (missing := missing_glyphs(line.text)):
        yield "font", f"{name}: no font draws {missing}"
    xs, ys = zip(*line.polygon, strict=True)
    beyond = max(-min(xs), -min(ys), max(xs) - 1, max(ys) - 1)
    if beyond > OUTSIDE_TOLERANCE:
        yield "outside", f"{name} leaves the picture by {beyond:.3g} of its side"
    if len(line.polygon) > MAX_POLYGON_POINTS:
        yield (
            "crossing",
            f"{name} has {len(line.polygon)} points, more than the {MAX_POLYGON_POINTS} that are looked at",
        )
    elif crosses_itself(line.polygon):
        yield "crossing", f"the polygon of {name} crosses itself"
    elif polygon_area(line.polygon) <= LEAST_AREA:
        yield "flat", f"the polygon of {name} covers no area"


def text_height(line: TextLine, height_pixels: int, width_pixels: int) -> float:
    """The mean length, in pixels, of the two edges that stand at the ends of the line."""
    quad = np.array(quad_of(line.polygon)) * (width_pixels, height_pixels)
    return float(np.linalg.norm(quad[3] - quad[0]) + np.linalg.norm(quad[2] - quad[1])) / 2


def check_members(members: dict[str, bytes], key: str) -> tuple[Sample | None, list[tuple[str, str]]]:
    """A sample as far as it decodes (None: not at all), and what is wrong with it: kinds and details."""
    faults: list[tuple[str, str]] = []
    kind = next((kind for kind in PICTURE_FORMATS if kind in members), None)
    picture = None
    if kind is None:
        faults.append(("incomplete", f"no picture; known: {', '.join(PICTURE_FORMATS)}"))
    else:
        try:
            width, height = picture_size(members[kind], kind)
            if width * height > MAX_PICTURE_PIXELS:
                faults.append(("bomb", f"{width} x {height} pixels are over the limit of {MAX_PICTURE_PIXELS}"))
            else:
                picture = decode_picture(members[kind], kind)
        except BadSample as error:
            bomb = isinstance(error.__cause__, Image.DecompressionBombError)
            faults.append(("bomb" if bomb else "picture", str(error)))
    if "json" not in members:
        return None, [*faults, ("incomplete", "no json")]
    try:
        sample = decode_record(members["json"], key)[1]
    except BadSample as error:
        lacks_caption = _lacks_caption(members["json"])
        fault = ("caption", "caption is missing or empty") if lacks_caption else ("record", str(error))
        return None, [*faults, fault]
    for line in sample.layout.lines:
        faults += line_faults(line)
    if picture is None:
        return None, faults
    return Sample(key, picture, sample.caption, sample.layout, sample.objects, sample.source, sample.licence), faults


def _lacks_caption(data: bytes) -> bool:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return False
    caption = record.get("caption") if isinstance(record, dict) else ""
    return caption is None or (isinstance(record, dict) and isinstance(caption, str) and not caption.strip())


def _count_sample(counts: Counts, sample: Sample, buckets: tuple[Bucket, ...]) -> None:
    height, width = sample.picture.shape[:2]
    if buckets:
        counts.buckets[nearest_bucket(buckets, width, height)] += 1
    valid = [line for line in sample.layout.lines if line.valid and line.text.strip()]
    counts.lines += len(sample.layout.lines)
    counts.valid_lines += len(valid)
    counts.without_text += not valid
    for line in valid:
        if missing := missing_glyphs(line.text):
            counts.fontless[unicodedata.name(missing[0], "unknown").partition(" ")[0].lower()] += 1
        pixels = text_height(line, height, width)
        counts.lengths[bin_of(len(line.text), LENGTH_EDGES)] += 1
        counts.heights_pixels[bin_of(pixels, HEIGHT_EDGES_PIXELS)] += 1
        counts.heights_percent[bin_of(100 * pixels / height, HEIGHT_EDGES_PERCENT)] += 1


def bin_of(value: float, edges: tuple[int, ...]) -> int:
    """The number of the bin: bin i holds edges[i] <= value < edges[i + 1], the last one all above."""
    return max(0, int(np.searchsorted(edges, value, side="right")) - 1)


def bin_names(edges: tuple[int, ...], unit: str = "") -> list[str]:
    """What the bins are called; whole numbers where there is no unit."""
    names = []
    for low, high in itertools.pairwise(edges):
        names.append(f"{low}-{high}{unit}" if unit else str(low) if high == low + 1 else f"{low}-{high - 1}")
    return [*names, f"{edges[-1]}{unit} and more"]


# One shard


@dataclass(frozen=True)
class _Scanned:
    number: int
    shard: ListedShard
    table: TarTable
    bytes: int
    findings: tuple[Finding, ...]


def _scan(numbered: tuple[int, ListedShard], cache: ShardCache) -> _Scanned:
    """Fetches a shard and reads its headers."""
    number, shard = numbered
    shown = storage.shown(shard.path)
    try:
        with cache.local(shard.path, shard.bytes, shard.sha256) as path, path.open("rb") as stream:
            table = scan_tar(stream)
            size = stream.seek(0, 2)
            findings = list(_shard_findings(shard, table, size, stream if not storage.is_url(shard.path) else None))
    except (StorageError, OSError) as error:
        return _Scanned(number, shard, TarTable((), (), None), 0, (Finding("shard", shown, None, _said(error, shown)),))
    return _Scanned(number, shard, table, size, tuple(findings))


def _said(error: Exception, shown: str) -> str:
    """The error's reason; the shard is named beside it."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return said.removeprefix(f"data.shards: {shown} ")


def _shard_findings(shard: ListedShard, table: TarTable, size: int, local: BufferedReader | None) -> Iterator[Finding]:
    shown = storage.shown(shard.path)
    if table.damage is not None:
        yield Finding("shard", shown, None, f"it is damaged: {table.damage}")
    if shard.bytes not in (None, size):
        yield Finding("manifest", shown, None, f"it has {size} bytes, the manifest says {shard.bytes}")
    elif shard.sha256 is not None and local is not None:  # what was fetched has been compared
        local.seek(0)
        if hashlib.file_digest(local, "sha256").hexdigest() != shard.sha256:
            yield Finding("manifest", shown, None, "its checksum is not the one in the manifest")
    if shard.samples not in (None, len(table.samples)):
        yield Finding(
            "manifest", shown, None, f"it has {len(table.samples)} samples, the manifest says {shard.samples}"
        )
    for name in table.ignored:
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
            yield Finding("name", shown, name, "the name leads out of the shard")
        elif name.rpartition("/")[2].partition(".")[2].lower() in MEMBER_KINDS:
            yield Finding("name", shown, name, "it is no file but a link or a device, or it has no key")
        else:
            yield Finding("member", shown, name, "it is no picture, json or txt")


@dataclass(frozen=True)
class _Chunk:
    scanned: _Scanned
    samples: tuple[SampleMembers, ...]
    is_first: bool
    is_last: bool
    # Sound samples of a rank under this are drawn, and so many of each kind of finding.
    drawn_below: float
    room: dict[str, int]


def draw_rank(shard: str, key: str) -> float:
    """0..1, the same in every run: the samples with the lowest are drawn, so that they come from all over the set."""
    digest = hashlib.sha256(f"{shard}\n{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _inspect(chunk: _Chunk, cache: ShardCache, buckets: tuple[Bucket, ...]) -> Inspection:
    shard, scanned = chunk.scanned.shard, chunk.scanned
    shown = storage.shown(shard.path)
    found = Inspection(scanned.number, ends_shard=chunk.is_last)
    if chunk.is_first:
        found.findings += scanned.findings
        found.counts.bytes += scanned.bytes
    if not chunk.samples:
        return found
    try:
        with cache.local(shard.path, shard.bytes, shard.sha256) as path, path.open("rb") as stream:
            _inspect_samples(found, chunk, stream, buckets)
    except (StorageError, OSError) as error:  # it was there when its headers were read
        found.findings.append(Finding("shard", shown, None, _said(error, shown)))
    return found


def _inspect_samples(found: Inspection, chunk: _Chunk, stream: BinaryIO, buckets: tuple[Bucket, ...]) -> None:
    shown = storage.shown(chunk.scanned.shard.path)
    room = dict(chunk.room)
    for entry in chunk.samples:
        found.counts.samples += 1
        found.keys.append(entry.key)
        if entry.fault is not None:
            found.findings.append(Finding("double", shown, entry.key, entry.fault))
            continue
        sample, faults = check_members(read_sample(stream, entry), entry.key)
        found.findings += [Finding(kind, shown, entry.key, detail) for kind, detail in faults]
        found.counts.sound += not faults
        if sample is None:
            continue
        _count_sample(found.counts, sample, buckets)
        kinds = {kind for kind, _ in faults}
        rank = draw_rank(shown, entry.key)
        if any(room[kind] > 0 for kind in kinds) or (not faults and rank < chunk.drawn_below):
            for kind in kinds:
                room[kind] -= 1
            found.cards.append(draw_card(sample, shown, tuple(faults), rank, line_faults))


# The whole


class KeyBook:
    """All keys with the shards they stand in, on disk in parts: a part alone is held in memory to find doubles."""

    PARTS = 256

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = ExitStack()
        self._parts: dict[int, TextIO] = {}

    def add(self, key: str, shard: int) -> None:
        """Notes that a shard has the key."""
        number = zlib.crc32(key.encode("utf-8", "surrogatepass")) % self.PARTS
        if number not in self._parts:
            self._parts[number] = self._files.enter_context(self._path(number).open("w", encoding="ascii"))
        self._parts[number].write(f"{shard} {json.dumps(key)}\n")

    def doubles(self) -> Iterator[tuple[str, list[int]]]:
        """Keys that stand in the set more than once, with their shards. Nothing can be added any more."""
        self._files.close()
        for number in sorted(self._parts):
            places: dict[str, list[int]] = {}
            with self._path(number).open(encoding="ascii") as stream:
                for line in stream:
                    shard, _, key = line.partition(" ")
                    places.setdefault(key, []).append(int(shard))
            yield from ((json.loads(key), shards) for key, shards in places.items() if len(shards) > 1)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number}.keys"


@dataclass
class Report:
    """What is known about a set; `interrupted` says that only a part of it was looked at."""

    shard_set: ShardSet
    options: ValidationOptions
    quick: bool = False
    interrupted: bool = False
    shards: int = 0
    counts: Counts = field(default_factory=Counts)
    found: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Finding]] = field(default_factory=dict)
    # Cards of sound samples (at most options.pictures, as a heap by -rank), and of findings by kind.
    sound_cards: list[tuple[float, int, Card]] = field(default_factory=list)
    finding_cards: dict[str, list[Card]] = field(default_factory=dict)
    drawn_sound: int = 0
    # From the manifests, in a quick report: their own sums.
    scripts: Counter[str] = field(default_factory=Counter)

    @property
    def samples(self) -> int:
        """How many samples the set has, so far as known."""
        return self.counts.samples

    @property
    def is_sound(self) -> bool:
        """Whether nothing was found."""
        return not self.found

    def note(self, finding: Finding) -> None:
        """Counts a finding, and keeps it while there are few of its kind."""
        self.found[finding.kind] += 1
        kept = self.examples.setdefault(finding.kind, [])
        if len(kept) < self.options.examples:
            kept.append(finding)

    def keep(self, card: Card) -> None:
        """Keeps a drawn sample where there is room for it."""
        if not card.faults:
            self.drawn_sound += 1
            heapq.heappush(self.sound_cards, (-card.rank, self.drawn_sound, card))
            if len(self.sound_cards) > self.options.pictures:
                heapq.heappop(self.sound_cards)
        for kind in dict.fromkeys(kind for kind, _ in card.faults):
            kept = self.finding_cards.setdefault(kind, [])
            if len(kept) < self.options.pictures_a_kind:
                kept.append(card)

    @property
    def drawn_below(self) -> float:
        """The rank that a sound sample must be under to be drawn."""
        if not self.options.pictures:
            return 0.0
        return 1.0 if len(self.sound_cards) < self.options.pictures else -self.sound_cards[0][0]

    @property
    def room(self) -> dict[str, int]:
        """How many pictures more are wanted of each kind of finding."""
        return {kind: self.options.pictures_a_kind - len(self.finding_cards.get(kind, ())) for kind in KINDS}

    def cards(self) -> list[tuple[str, list[Card]]]:
        """The drawn samples under their headings."""
        sound = [card for _, _, card in sorted(self.sound_cards, key=lambda entry: -entry[0])]
        groups = [("sound samples from all over the set", sound)]
        groups += [(description, self.finding_cards.get(kind, [])) for kind, description in KINDS.items()]
        return [(heading, cards) for heading, cards in groups if cards]

    @property
    def too_small_for(self) -> str | None:
        """Why the launch that is asked about cannot be; None: it can, or none is asked about."""
        launch = self.options.launch
        if launch is None or self.samples >= launch.needed_samples:
            return None
        return (
            f"{self.samples} samples are too few for {launch.ranks} ranks x batches of {launch.batch_size}: at least"
            f" {launch.needed_samples}; add samples, or lower one of the two"
        )


def validate(
    shard_set: ShardSet,
    options: ValidationOptions,
    cache: ShardCache,
    on_finding: Callable[[Finding], None],
    on_progress: Callable[[Inspection], None],
) -> Report:
    """Looks at every sample, on all cores. `on_finding` gets every finding, the report a few of each kind.

    Ctrl-C ends it early, with the report of what was looked at.
    """
    buckets = options.buckets
    report = Report(shard_set, options)

    def note(finding: Finding) -> None:
        report.note(finding)
        on_finding(finding)

    for finding in shard_set.findings:
        note(finding)
    scratch = tempfile.TemporaryDirectory(prefix="vlad-validate-")
    with scratch as directory:
        keys = KeyBook(Path(directory))
        try:
            for inspection in map_in_order(
                partial(_inspect, cache=cache, buckets=buckets), _chunks(shard_set, report, cache)
            ):
                report.counts.add(inspection.counts)
                report.shards += inspection.ends_shard
                for finding in inspection.findings:
                    note(finding)
                for card in inspection.cards:
                    report.keep(card)
                for key in inspection.keys:
                    keys.add(key, inspection.shard)
                on_progress(inspection)
        except KeyboardInterrupt:
            report.interrupted = True
        for key, numbers in keys.doubles():
            names = [storage.shown(shard_set.shards[number].path) for number in numbers]
            places = ", ".join(dict.fromkeys(names[:5])) + (", ..." if len(names) > 5 else "")
            note(Finding("duplicate", names[1], key, f"{len(names)} times: {places}"))
    if not report.interrupted and report.too_small_for is not None:
        note(Finding("launch", None, None, report.too_small_for))
    return report


def _chunks(shard_set: ShardSet, report: Report, cache: ShardCache) -> Iterator[_Chunk]:
    numbered = enumerate(shard_set.shards)
    for scanned in map_in_order(partial(_scan, cache=cache), numbered, min(FETCHED_AHEAD, available_cores())):
        entries = scanned.table.samples
        starts = range(0, max(1, len(entries)), CHUNK_SAMPLES)
        for start in starts:
            samples = entries[start : start + CHUNK_SAMPLES]
            yield _Chunk(scanned, samples, start == 0, start == starts[-1], report.drawn_below, report.room)


def validate_manifests(
    shard_set: ShardSet, options: ValidationOptions, on_finding: Callable[[Finding], None]
) -> Report:
    """What the manifests alone say. Raises UserError where there is none."""
    if not shard_set.manifests:
        raise UserError(
            f"There is no {storage.MANIFEST} beside the shards at {shard_set.pattern}; leave out --quick to read the"
            " shards themselves."
        )
    report = Report(shard_set, options, quick=True)
    findings = list(shard_set.findings)
    for shard in shard_set.shards:
        report.shards += 1
        report.counts.samples += shard.samples or 0
        report.counts.bytes += shard.bytes or 0
        path = Path(shard.path)
        if shard.bytes is not None and not storage.is_url(shard.path) and path.stat().st_size != shard.bytes:
            size = path.stat().st_size
            findings.append(
                Finding("manifest", shard.path, None, f"it has {size} bytes, the manifest says {shard.bytes}")
            )
        _add_statistics(report, shard.statistics or {})
    if report.too_small_for is not None:
        findings.append(Finding("launch", None, None, report.too_small_for))
    for finding in findings:
        report.note(finding)
        on_finding(finding)
    return report


def _add_statistics(report: Report, statistics: dict[str, Any]) -> None:
    for name in ("lines", "valid_lines"):
        if isinstance(value := statistics.get(name), int):
            setattr(report.counts, name, getattr(report.counts, name) + value)
    scripts = statistics.get("scripts")
    if isinstance(scripts, dict):
        report.scripts.update({str(name): count for name, count in scripts.items() if isinstance(count, int)})
