"""WebDataset shards on disk: found, counted, and read a sample at a time.

    pattern -> tar files, with what their manifests say -> members of any sample by its number, undecoded

Tar headers are `tars`'s part, decoding is `decoding`'s, the order `order`'s.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from braceexpand import braceexpand

from vlad.data import tars
from vlad.data.decoding import MEMBER_KINDS, BadSample
from vlad.data.tars import TarTable, read_sample, scan_tar
from vlad.data.writing import MANIFEST, read_sizes
from vlad.errors import UserError

OPEN_SHARDS = 16  # kept open by a reader: those that a shuffling window spans, and some more


class ShardError(UserError):
    """A shard that cannot be used, found while it is read."""

    def __init__(self, message: str) -> None:
        # A DataLoader makes a worker's exception again from its whole traceback: our sentence is its end.
        super().__init__(message.rpartition(f"{__name__}.{type(self).__name__}: ")[2].strip())


@dataclass(frozen=True)
class ShardEntry:
    """What the manifest says about a shard. Without one `samples` is counted, and bytes and sha256 are None."""

    path: str
    samples: int
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class ShardIndex:
    """The shards of one set. Its samples are numbered through, in the shards' order."""

    shards: tuple[ShardEntry, ...]

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
        """The number of each shard's first sample."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @property
    def fingerprint(self) -> str:
        """Changes when a shard is added, removed or replaced by one of another length or content."""
        lines = [f"{Path(shard.path).name} {shard.samples} {shard.sha256}" for shard in self.shards]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def find_shards(pattern: str) -> tuple[str, ...]:
    """The tar files of a directory, a glob or a brace pattern, sorted.

    Raises UserError when there is none, or the pattern would run a program (`pipe:`).
    """
    if pattern.startswith("pipe:"):
        raise UserError(f"data.shards: {pattern} would run a program; give a directory of tar files.")
    found: list[str] = []
    try:
        parts = list(braceexpand(pattern))
    except ValueError as error:
        raise UserError(f"data.shards: {pattern} has a brace without its partner; close it, or escape it.") from error
    for part in parts:
        if Path(part).is_dir():
            found += map(str, Path(part).glob("*.tar"))
        else:
            found += glob.glob(part)  # noqa: PTH207 - Path.glob takes no absolute patterns
    if not found:
        raise UserError(
            f"data.shards: there are no shards at {pattern}; make some with tools/render_shards.py (rendered signs)"
            " or tools/make_shards.py (your pictures)."
        )
    return tuple(sorted(found))


def index_shards(pattern: str) -> ShardIndex:
    """Finds and counts shards: from their manifests where they are, else by reading the tar headers.

    Raises UserError for a shard that cannot be read as a tar, or is not as long as its manifest says.
    """
    paths = find_shards(pattern)
    known: dict[str, ShardEntry] = {}
    for directory in {Path(path).parent for path in paths}:
        manifest = directory / MANIFEST
        if manifest.is_file():
            known.update(_read_manifest(manifest, directory))
    entries = []
    for path in paths:
        entry = known.get(str(Path(path)))
        if entry is None:
            entries.append(ShardEntry(path, _count_samples(path)))
            continue
        found_bytes = Path(path).stat().st_size
        if entry.bytes != found_bytes:
            raise UserError(
                f"data.shards: {path} has {found_bytes} bytes, but its {MANIFEST} says {entry.bytes}; copy or make"
                " it again."
            )
        entries.append(entry)
    return ShardIndex(tuple(entries))


def _read_manifest(manifest: Path, directory: Path) -> dict[str, ShardEntry]:
    try:
        record = json.loads(manifest.read_text(encoding="utf-8"))
        return {
            path: ShardEntry(path, int(entry["samples"]), int(entry["bytes"]), entry.get("sha256"))
            for entry in record["shards"]
            for path in [str(directory / entry["name"])]
        }
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"data.shards: {manifest} is no shard manifest ({error!r}); remove it, and the shards are counted."
        ) from error


def _count_samples(path: str) -> int:
    with _open_tar(path) as stream:
        table = scan_tar(stream)
    if table.damage is not None:
        raise ShardError(f"data.shards: {path} is not a whole tar file of samples ({table.damage}); make it again.")
    return len(table.samples)


def _open_tar(path: str) -> BinaryIO:
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise ShardError(f"data.shards: {path} cannot be opened ({error.strerror}); copy or make it again.") from error


def read_members(path: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of a shard in order, undecoded: key and members by kind.

    Raises UserError for a damaged tar, and for a sample that its headers speak against.
    """
    with _open_tar(path) as stream:
        table = scan_tar(stream)
        for sample in table.samples:
            if sample.fault is not None:
                raise ShardError(f"data.shards: {path}: {sample.key}: {sample.fault}; make it again.")
            yield sample.key, read_sample(stream, sample)
        if table.damage is not None:
            raise ShardError(f"data.shards: {path} is not a whole tar file of samples ({table.damage}); make it again.")


@dataclass(frozen=True)
class RawSample:
    """The members of a sample by kind, undecoded, and the shard they come from."""

    key: str
    shard: str
    members: dict[str, bytes]


class UnreadableSample(BadSample):
    """A sample that its shard does not give out, with the name of both."""

    def __init__(self, key: str, shard: str, reason: str) -> None:
        super().__init__(reason)
        self.key, self.shard = key, shard


@dataclass(frozen=True)
class _OpenShard:
    stream: BinaryIO
    table: TarTable
    # Why nothing of it may be used; None: it is what its manifest says.
    fault: str | None


class ShardReader:
    """Gives any sample of a set by its number; keeps the shards it read last open."""

    def __init__(self, index: ShardIndex, verify: bool = True, kinds: frozenset[str] = MEMBER_KINDS) -> None:
        self.index, self.verify, self.kinds = index, verify, kinds
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._verified: set[int] = set()

    def read(self, number: int) -> RawSample:
        """Sample `number` of the set. Raises UnreadableSample where its shard is damaged at that place."""
        shard = int(np.searchsorted(self.index.starts, number, side="right")) - 1
        place = number - int(self.index.starts[shard])
        opened, path = self._shard(shard), self.index.shards[shard].path
        if opened.fault is not None:
            raise UnreadableSample(f"sample {place}", path, opened.fault)
        if place >= len(opened.table.samples):
            reason = opened.table.damage or "the shard holds fewer samples than it is said to"
            raise UnreadableSample(f"sample {place}", path, f"the shard is damaged: {reason}")
        sample = opened.table.samples[place]
        if sample.fault is not None:
            raise UnreadableSample(sample.key, path, sample.fault)
        return RawSample(sample.key, path, read_sample(opened.stream, sample))

    def close(self) -> None:
        """Closes all shards."""
        while self._open:
            self._open.popitem()[1].stream.close()

    def _shard(self, number: int) -> _OpenShard:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        entry = self.index.shards[number]
        stream = _open_tar(entry.path)
        fault = None
        # Once a process: hashing costs a fiftieth of decoding what is hashed.
        if self.verify and entry.sha256 is not None and number not in self._verified:
            if hashlib.file_digest(stream, "sha256").hexdigest() != entry.sha256:
                fault = f"the shard's bytes are not those that its {MANIFEST} was made for"
            else:
                self._verified.add(number)
        table = scan_tar(stream, self.kinds) if fault is None else TarTable((), (), None)
        self._open[number] = _OpenShard(stream, table, fault)
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)[1].stream.close()
        return self._open[number]


def picture_sizes(index: ShardIndex) -> np.ndarray:
    """Width and height of every picture of a set, N 2 (int32).

    From the small file beside a shard where there is one (`writing` makes it), else from the headers in the shard.
    """
    parts = []
    for shard in index.shards:
        sizes = read_sizes(Path(shard.path), shard.bytes)
        if sizes is None:
            with _open_tar(shard.path) as stream:
                sizes = tars.picture_sizes(stream, scan_tar(stream))
        # As long as the index says; what is missing or damaged is told when its turn comes.
        padded = np.ones((shard.samples, 2), dtype=np.int32)
        padded[: len(sizes)] = sizes[: shard.samples]
        parts.append(padded)
    return np.concatenate(parts)
