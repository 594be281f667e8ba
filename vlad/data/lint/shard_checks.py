"""Lists shards with their manifests, and checks each: its headers first, then its samples a chunk at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from vlad.data.buckets import Bucket
from vlad.data.lint.contact_sheets import Card, draw_card
from vlad.data.lint.sample_checks import Finding, check_members
from vlad.data.lint.sample_statistics import Counts, count_sample
from vlad.data.options import FetchOptions
from vlad.data.shards.reader import ShardEntry, manifest_entries
from vlad.data.shards.tar_index import DEVICE, LINK, OUTSIDE, SampleMembers, TarTable, open_tar, read_sample, scan_tar
from vlad.data.storage import locations
from vlad.data.storage.retries import StorageError
from vlad.data.storage.shard_cache import ShardCache
from vlad.data.storage.urls import display_url, is_url, join_path, parent_directory
from vlad.utils.errors import reason_of


@dataclass(frozen=True)
class ListedShard:
    """An existing shard, and its entry in the manifest (None: no entry)."""

    path: str
    entry: ShardEntry | None = None

    @property
    def expected(self) -> tuple[str, int | None, str | None]:
        """Path, bytes and SHA-256, the arguments of `ShardCache.local`."""
        return (self.path, None, None) if self.entry is None else (self.path, self.entry.bytes, self.entry.sha256)


@dataclass(frozen=True)
class ShardSet:
    """All shards of a pattern, and the problems of their manifests."""

    pattern: str
    shards: tuple[ListedShard, ...]
    manifests: int
    findings: tuple[Finding, ...]

    @property
    def listed_samples(self) -> int | None:
        """The number of samples in the manifests; None if a shard has no entry."""
        entries = [shard.entry for shard in self.shards if shard.entry is not None]
        return sum(entry.samples for entry in entries) if len(entries) == len(self.shards) else None


def list_set(pattern: str, cache: FetchOptions | None = None) -> ShardSet:
    """Finds the shards and reads their manifests. Raises UserError if there are no shards."""
    # In one spelling: they are keys of the manifests' entries.
    paths = tuple(path if is_url(path) else str(Path(path)) for path in locations.expand_pattern(pattern, cache))
    listed: dict[str, ShardEntry] = {}
    findings: list[Finding] = []
    manifests = 0
    for directory in sorted({parent_directory(path) for path in paths}):
        manifest = join_path(directory, locations.MANIFEST)
        if not locations.exists(manifest, cache):
            continue
        manifests += 1
        try:
            entries = manifest_entries(locations.read_bytes(manifest, cache), directory)
        except StorageError as error:
            findings.append(Finding("manifest", display_url(manifest), None, str(error)))
            continue
        except locations.NOT_A_MANIFEST as error:
            findings.append(
                Finding("manifest", display_url(manifest), None, f"not a shard manifest: {reason_of(error)}")
            )
            continue
        listed |= entries
        if not pattern.endswith(".tar") and not any(character in pattern for character in "*?[{"):
            findings += [
                Finding("manifest", display_url(path), None, "listed in the manifest, but missing")
                for path in entries.keys() - set(paths)
            ]
        findings += [
            Finding("manifest", display_url(path), None, "not listed in the manifest beside it")
            for path in paths
            if parent_directory(path) == directory and path not in entries
        ]
    shards = tuple(ListedShard(path, listed.get(path)) for path in paths)
    return ShardSet(display_url(pattern), shards, manifests, tuple(findings))


@dataclass
class Inspection:
    """The result of checking a chunk of one shard."""

    shard: int
    counts: Counts = field(default_factory=Counts)
    keys: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    ends_shard: bool = False


@dataclass(frozen=True)
class ScannedShard:
    """A shard whose headers have been read."""

    number: int
    shard: ListedShard
    table: TarTable
    bytes: int
    findings: tuple[Finding, ...]


def scan_shard(numbered: tuple[int, ListedShard], cache: ShardCache) -> ScannedShard:
    """Fetches a shard and checks its headers."""
    number, shard = numbered
    name = display_url(shard.path)
    try:
        with cache.local(*shard.expected) as path, open_tar(path) as stream:
            table = scan_tar(stream)
            size = stream.seek(0, 2)
            findings = list(_shard_findings(shard, table, size, stream if not is_url(shard.path) else None))
    except (StorageError, OSError) as error:
        return ScannedShard(
            number, shard, TarTable((), (), None), 0, (Finding("shard", name, None, _reason(error, name)),)
        )
    return ScannedShard(number, shard, table, size, tuple(findings))


def _reason(error: Exception, name: str) -> str:
    """The error without the shard's name, which a finding has already."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return said.removeprefix(f"data.shards: {name} ")


def _shard_findings(shard: ListedShard, table: TarTable, size: int, local: BufferedReader | None) -> Iterator[Finding]:
    name = display_url(shard.path)
    if table.damage is not None:
        yield Finding("shard", name, None, f"damaged: {table.damage}")
    elif not table.samples:
        yield Finding("shard", name, None, "it contains no samples")
    if shard.entry is not None:
        for detail in _differences(shard.entry, len(table.samples), size, local):
            yield Finding("manifest", name, None, detail)
    for member in table.passed_over:
        unsafe = member.reason in (OUTSIDE, LINK, DEVICE)
        yield Finding("name" if unsafe else "member", name, member.name, member.reason)


def _differences(entry: ShardEntry, samples: int, size: int, local: BufferedReader | None) -> Iterator[str]:
    """Where a shard differs from its entry in the manifest."""
    if entry.bytes not in (None, size):
        yield f"it has {size} bytes, the manifest says {entry.bytes}"
    elif entry.sha256 is not None and local is not None:  # fetching has compared the others
        local.seek(0)
        if hashlib.file_digest(local, "sha256").hexdigest() != entry.sha256:
            yield "its checksum differs from the manifest's"
    if entry.samples != samples:
        yield f"it has {samples} samples, the manifest says {entry.samples}"


@dataclass(frozen=True)
class Chunk:
    """Consecutive samples of a shard that one task checks."""

    scanned: ScannedShard
    samples: tuple[SampleMembers, ...]
    is_first: bool
    is_last: bool
    # Cards are made of sound samples ranked below this, and of so many more samples with each kind of finding.
    card_below: float
    wanted_cards: dict[str, int]


def card_rank(shard: str, key: str) -> float:
    """A hash in 0..1. Samples of lowest rank get cards: a selection from the whole set, the same in every run."""
    digest = hashlib.sha256(f"{shard}\n{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def inspect_chunk(chunk: Chunk, cache: ShardCache, buckets: tuple[Bucket, ...]) -> Inspection:
    """Checks every sample of a chunk."""
    shard, scanned = chunk.scanned.shard, chunk.scanned
    name = display_url(shard.path)
    found = Inspection(scanned.number, ends_shard=chunk.is_last)
    if chunk.is_first:
        found.findings += scanned.findings
        found.counts.bytes += scanned.bytes
    if not chunk.samples:
        return found
    try:
        with cache.local(*shard.expected) as path, open_tar(path) as stream:
            _inspect_samples(found, chunk, stream, buckets)
    except (StorageError, OSError) as error:  # after its headers could be read
        found.findings.append(Finding("shard", name, None, _reason(error, name)))
    return found


def _inspect_samples(found: Inspection, chunk: Chunk, stream: BinaryIO, buckets: tuple[Bucket, ...]) -> None:
    name = display_url(chunk.scanned.shard.path)
    wanted = dict(chunk.wanted_cards)
    for entry in chunk.samples:
        found.counts.samples += 1
        found.keys.append(entry.key)
        if entry.fault is not None:
            found.findings.append(Finding("double", name, entry.key, entry.fault))
            continue
        sample, faults = check_members(read_sample(stream, entry), entry.key)
        found.findings += [Finding(kind, name, entry.key, detail) for kind, detail in faults]
        found.counts.sound += not faults
        if sample is None:
            continue
        count_sample(found.counts, sample, buckets)
        kinds = {kind for kind, _ in faults}
        rank = card_rank(name, entry.key)
        if any(wanted[kind] > 0 for kind in kinds) or (not faults and rank < chunk.card_below):
            for kind in kinds:
                wanted[kind] -= 1
            found.cards.append(draw_card(sample, name, tuple(faults), rank))
