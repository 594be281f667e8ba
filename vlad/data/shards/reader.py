"""Reading WebDataset shards, local or remote: the index of a shard set, and random access to its samples.

pattern -> index_shards: tar files, with samples and checksums -> ShardReader: members of sample number i, undecoded
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any, BinaryIO

import numpy as np

from vlad.data.decoding import MEMBER_KINDS, BadSample
from vlad.data.options import FetchOptions
from vlad.data.shards.tar_index import TarTable, header_sizes, open_tar, read_sample, scan_tar
from vlad.data.shards.writer import MANIFEST, SIZES_SUFFIX, read_sizes
from vlad.data.storage import locations
from vlad.data.storage.retries import StorageError
from vlad.data.storage.shard_cache import ShardCache
from vlad.data.storage.urls import display_url, is_url, join_path, parent_directory
from vlad.utils.errors import UserError, reason_of
from vlad.utils.passed_over import PassedOver

MAX_SAMPLES = 10_000_000  # that a manifest may say of a shard: each takes memory
OPEN_SHARDS = 16  # kept open by a reader: those that a shuffle window spans, and some more


class ShardError(StorageError):
    """A shard that cannot be used."""


@dataclass(frozen=True)
class ShardEntry:
    """A shard as its manifest describes it. Without a manifest `samples` is counted, and the rest is None."""

    path: str
    samples: int
    bytes: int | None = None
    sha256: str | None = None
    statistics: dict[str, Any] | None = None


@dataclass(frozen=True)
class ShardIndex:
    """The shards of one set; its samples are numbered through, in the order of the shards."""

    shards: tuple[ShardEntry, ...]
    # What shards without a manifest hold besides; those with one are not read before they are used.
    passed_over: PassedOver = field(default_factory=PassedOver, compare=False)

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths or URLs of the shards."""
        return tuple(shard.path for shard in self.shards)

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of samples of each shard."""
        return tuple(shard.samples for shard in self.shards)

    @property
    def samples(self) -> int:
        """The number of samples of all shards."""
        return sum(self.counts)

    @cached_property
    def starts(self) -> np.ndarray:
        """The number of each shard's first sample, and the number of all samples (int64)."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @property
    def fingerprint(self) -> str:
        """Changes when a shard is added, removed or replaced by another one."""
        lines = [f"{Path(shard.path).name} {shard.samples} {shard.sha256}" for shard in self.shards]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def index_shards(pattern: str, fetch: FetchOptions | None = None) -> ShardIndex:
    """The shards of a pattern with their samples, from the manifests, else counted in the tar headers.

    Raises UserError where there are none, and for a shard that is no whole tar or not as long as its manifest says.
    """
    fetch = fetch or FetchOptions()
    paths = locations.expand_pattern(pattern, fetch)
    known: dict[str, ShardEntry] = {}
    for directory in sorted({parent_directory(path) for path in paths}):
        known.update(_read_manifest(directory, fetch))
    entries = []
    passed_over = PassedOver()
    for path in paths:
        entry = known.get(path)
        if entry is None:
            entries.append(ShardEntry(path, _count_samples(path, fetch, passed_over)))
            continue
        # The cache checks the length of a remote shard.
        found_bytes = entry.bytes if is_url(path) else _local_bytes(path)
        if entry.bytes != found_bytes:
            raise UserError(
                f"data.shards: {path} has {found_bytes} bytes, but its {MANIFEST} says {entry.bytes}; copy or make"
                " it again."
            )
        entries.append(entry)
    missing = sorted(known.keys() - set(paths))
    if missing and pattern.rstrip("/") in {parent_directory(path) for path in missing}:
        raise UserError(
            f"data.shards: {display_url(missing[0])} is missing, but the {MANIFEST} beside it lists it; bring it"
            " back, or name the shards that are there by a pattern (*.tar)."
        )
    return ShardIndex(tuple(entries), passed_over)


def manifest_entries(data: bytes, directory: str) -> dict[str, ShardEntry]:
    """The shards that a manifest describes, by path or URL. Raises one of locations.NOT_A_MANIFEST."""
    entries = {}
    for entry in json.loads(data)["shards"]:
        path = join_path(directory, entry["name"])
        sha256, statistics = entry.get("sha256"), entry.get("statistics")
        entries[path] = ShardEntry(
            path,
            int(entry["samples"]),
            int(entry["bytes"]),
            None if sha256 is None else str(sha256),
            statistics if isinstance(statistics, dict) else None,
        )
    for entry in entries.values():
        if not 1 <= entry.samples <= min(MAX_SAMPLES, (entry.bytes or 0) // BLOCKSIZE):
            raise ValueError(f"a shard of {entry.bytes} bytes and {entry.samples} samples")
    return entries


def _read_manifest(directory: str, fetch: FetchOptions) -> dict[str, ShardEntry]:
    """The shards that the manifest of a directory describes, by path or URL; empty where there is none."""
    manifest = join_path(directory, MANIFEST)
    if not locations.exists(manifest, fetch):
        return {}
    try:
        return manifest_entries(locations.read_bytes(manifest, fetch), directory)
    except locations.NOT_A_MANIFEST as error:
        raise UserError(
            f"data.shards: {display_url(manifest)} is no shard manifest ({reason_of(error)}); remove it, and the"
            " samples are counted."
        ) from error


def _count_samples(path: str, fetch: FetchOptions, passed_over: PassedOver) -> int:
    with ShardCache(fetch).local(path) as local, _open_tar(local) as stream:
        table = scan_tar(stream)
    if table.damage is not None:
        raise _broken_shard(path, table.damage)
    for member in table.passed_over:
        passed_over.add(member.reason, f"{Path(path).name}: {member.name}")
    return len(table.samples)


def _open_tar(path: Path) -> BufferedReader:
    try:
        return open_tar(path)
    except OSError as error:
        raise _unopened_shard(path, error) from error


def _local_bytes(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError as error:  # a link to what is not there
        raise _unopened_shard(path, error) from error


def _unopened_shard(path: Path | str, error: OSError) -> ShardError:
    return ShardError(f"data.shards: {path} cannot be opened ({error.strerror}); copy or make it again.")


def _broken_shard(path: str, damage: str) -> ShardError:
    return ShardError(f"data.shards: {display_url(path)} is not a whole tar file of samples ({damage}); make it again.")


def read_members(path: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of a local shard in order, undecoded: key and members by kind.

    Raises UserError for a damaged tar, and for a sample whose headers are wrong.
    """
    with _open_tar(Path(path)) as stream:
        table = scan_tar(stream)
        for sample in table.samples:
            if sample.fault is not None:
                raise ShardError(f"data.shards: {path}: {sample.key}: {sample.fault}; make it again.")
            yield sample.key, read_sample(stream, sample)
        if table.damage is not None:
            raise _broken_shard(path, table.damage)


@dataclass(frozen=True)
class RawSample:
    """The members of a sample by kind, undecoded, and the shard that they come from."""

    key: str
    shard: str
    members: dict[str, bytes]


class UnreadableSample(BadSample):
    """A sample that cannot be read from its shard."""

    def __init__(self, key: str, shard: str, reason: str) -> None:
        super().__init__(reason)
        self.key, self.shard = key, shard


@dataclass(frozen=True)
class _OpenShard:
    stream: BinaryIO
    # Closes the stream, and ends the use of the cached copy.
    held: ExitStack
    table: TarTable
    # Why nothing of it may be used; None: it is as its manifest says.
    fault: str | None


class ShardReader:
    """Random access to the samples of a set by their numbers; keeps the last shards open."""

    def __init__(
        self,
        index: ShardIndex,
        verify: bool = True,
        kinds: frozenset[str] = MEMBER_KINDS,
        fetch: FetchOptions | None = None,
    ) -> None:
        self.index, self.verify, self.kinds = index, verify, kinds
        self.copies = ShardCache(fetch)
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._verified: set[int] = set()

    def read(self, number: int) -> RawSample:
        """Sample `number` of the set. Raises UnreadableSample where its shard is damaged there."""
        shard = int(np.searchsorted(self.index.starts, number, side="right")) - 1
        position = number - int(self.index.starts[shard])
        opened, path = self._shard(shard), self.index.shards[shard].path
        if opened.fault is not None:
            raise UnreadableSample(f"sample {position}", path, opened.fault)
        if position >= len(opened.table.samples):
            reason = opened.table.damage or "the shard holds fewer samples than its manifest says"
            raise UnreadableSample(f"sample {position}", path, f"the shard is damaged: {reason}")
        sample = opened.table.samples[position]
        if sample.fault is not None:
            raise UnreadableSample(sample.key, path, sample.fault)
        return RawSample(sample.key, path, read_sample(opened.stream, sample))

    def close(self) -> None:
        """Closes all shards."""
        while self._open:
            self._open.popitem()[1].held.close()

    def _shard(self, number: int) -> _OpenShard:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        entry = self.index.shards[number]
        remote = is_url(entry.path)
        with ExitStack() as opening:
            path = opening.enter_context(self.copies.local(entry.path, entry.bytes, entry.sha256))
            stream = opening.enter_context(_open_tar(path))
            fault = None
            # Once per process; the cache compared its copies.
            if self.verify and entry.sha256 is not None and not remote and number not in self._verified:
                if hashlib.file_digest(stream, "sha256").hexdigest() != entry.sha256:
                    fault = f"the shard's checksum is not the one in its {MANIFEST}"
                else:
                    self._verified.add(number)
            table = scan_tar(stream, self.kinds) if fault is None else TarTable((), (), None)
            if len(table.samples) > entry.samples and fault is None:
                fault = f"the shard holds {len(table.samples)} samples, but its manifest says {entry.samples}"
            self._open[number] = _OpenShard(stream, opening.pop_all(), table, fault)
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)[1].held.close()
        return self._open[number]


def sizes_beside(shard: ShardEntry, fetch: FetchOptions | None = None) -> np.ndarray | None:
    """The image sizes (N 2: width, height) in the file beside a shard; None where there is none that fits."""
    beside = f"{shard.path.partition('?')[0].removesuffix('.tar')}{SIZES_SUFFIX}"
    if not locations.exists(beside, fetch):
        return None
    return read_sizes(locations.read_bytes(beside, fetch).decode("utf-8", "replace"), shard.bytes, shard.samples)


def image_sizes(index: ShardIndex, fetch: FetchOptions | None = None) -> np.ndarray:
    """Width and height of every image of a set, N 2 (int32).

    From the file of sizes beside each shard (`writer` makes it), else from the image headers in the shard.
    """
    parts = []
    for shard in index.shards:
        sizes = sizes_beside(shard, fetch)
        if sizes is None:
            copies = ShardCache(fetch)
            with copies.local(shard.path, shard.bytes, shard.sha256) as local, _open_tar(local) as stream:
                sizes = header_sizes(stream, scan_tar(stream))
        # Missing or damaged samples are reported when they are read.
        padded = np.ones((shard.samples, 2), dtype=np.int32)
        padded[: len(sizes)] = sizes[: shard.samples]
        parts.append(padded)
    return np.concatenate(parts)
