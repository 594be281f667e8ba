"""WebDataset shards, read as an exact, endless stream.

    shard list -> every sample's place in the epoch's order -> one worker's share -> tar members
              -> decode (bad samples: quarantine) -> fit to the picture size -> batch

Batch number i comes from stream i modulo the number of streams
(ranks x workers); a stream's content depends on (shards, seed, number of streams) alone. A run stopped after k
batches goes on with batch k by skipping what its streams have given, before anything is decoded.
"""

from __future__ import annotations

import glob
import itertools
import json
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from braceexpand import braceexpand
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from vlad import distributed
from vlad.data.decoding import BadSample, decode_sample
from vlad.data.writing import MANIFEST
from vlad.errors import UserError
from vlad.layout.glyphmap import draw_glyph_map, ignore_mask
from vlad.records import Batch, Sample


class ShardError(UserError):
    """A shard that cannot be used, found while it is read."""

    def __init__(self, message: str) -> None:
        # A DataLoader makes a worker's exception again from its whole traceback: our sentence is its end.
        super().__init__(message.rpartition(f"{__name__}.{type(self).__name__}: ")[2].strip())


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


@dataclass(frozen=True)
class ShardIndex:
    """How many samples each shard holds: from the manifests where they are, else by reading the tar headers."""

    paths: tuple[str, ...]
    counts: tuple[int, ...]

    @property
    def samples(self) -> int:
        """The number of samples of all shards."""
        return sum(self.counts)


def index_shards(pattern: str) -> ShardIndex:
    """Finds and counts shards.

    Raises UserError for a shard that cannot be read as a tar, or is not as long as its manifest says.
    """
    paths = find_shards(pattern)
    known: dict[str, tuple[int, int]] = {}  # samples, bytes
    for directory in {Path(path).parent for path in paths}:
        manifest = directory / MANIFEST
        if manifest.is_file():
            try:
                record = json.loads(manifest.read_text(encoding="utf-8"))
                for entry in record["shards"]:
                    known[str(directory / entry["name"])] = int(entry["samples"]), int(entry["bytes"])
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"data.shards: {manifest} is no shard manifest ({error!r}); remove it, and the shards are counted."
                ) from error
    counts = []
    for path in paths:
        samples, expected_bytes = known.get(str(Path(path)), (None, None))
        found_bytes = Path(path).stat().st_size
        if expected_bytes not in (None, found_bytes):
            raise UserError(
                f"data.shards: {path} has {found_bytes} bytes, but its {MANIFEST} says {expected_bytes}; copy or make"
                " it again."
            )
        counts.append(_count_samples(path) if samples is None else samples)
    return ShardIndex(paths, tuple(counts))


def _count_samples(path: str) -> int:
    try:
        with tarfile.open(path) as archive:
            return sum(1 for name in archive.getnames() if name.endswith(".json"))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise _broken_shard(path, error) from error


def _broken_shard(path: str, error: Exception) -> ShardError:
    # webdataset adds its streams to the error's arguments, tarfile a line for every compression it tried.
    reason = str(error.args[0] if error.args else error).splitlines()[0].partition(" @ <")[0].rstrip(":")
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    return ShardError(f"data.shards: {path} is not a whole tar file of samples ({reason}); make it again.")


def read_members(path: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of a shard, undecoded: key and members by extension.

    Raises UserError for a broken tar, and for one that holds a member twice.
    """
    try:
        # Opened here: webdataset's own opener runs programs (`pipe:`) and takes a colon in a path for a scheme.
        with Path(path).open("rb") as stream:
            # No `.decode()`: webdataset's own decoders unpickle; ours are the allow-list of `decoding`.
            members = wds.tariterators.tar_file_expander(
                [{"url": path, "stream": stream}], handler=wds.reraise_exception
            )
            for sample in wds.tariterators.group_by_keys(members, handler=wds.reraise_exception):
                key = sample["__key__"]
                yield key, {name.lower(): data for name, data in sample.items() if not name.startswith("__")}
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise _broken_shard(path, error) from error


@dataclass(frozen=True)
class StreamOptions:
    """How shards become batches."""

    picture_pixels: int = 64
    batch_size: int = 64
    workers: int = 1
    seed: int = 0
    # Samples held back to be drawn from at random; the shards' own order is drawn anew each epoch.
    shuffle_buffer: int = 2000
    # Past this share of samples that cannot be used the run stops.
    max_bad_share: float = 0.05


class SampleStream:
    """One endless stream of decoded samples: every `streams`-th sample of every epoch, in a seeded order."""

    def __init__(self, index: ShardIndex, options: StreamOptions, stream: int, streams: int, quarantine: Path | None):
        self.index, self.options, self.quarantine = index, options, quarantine
        self.stream, self.streams = stream, streams
        self.seen, self.bad = 0, 0

    def samples(self) -> Iterator[Sample]:
        """Decoded samples; a bad one is recorded, and its place is left out."""
        return (sample for sample in self._decoded(0) if sample is not None)

    def batches(self, first: int = 0) -> Iterator[list[Sample]]:
        """Batches from number `first` on, number i from the places i B to (i + 1) B of the stream.

        For a bad sample the next good one after the batch stands in, and comes again at its own place: so a batch
        depends on its number alone, whether or not those before it were decoded.
        """
        size = self.options.batch_size
        places = self._decoded(first * size)
        ahead: deque[Sample | None] = deque()
        while True:
            while len(ahead) < size or sum(sample is not None for sample in ahead) < size:
                ahead.append(next(places))
            yield [sample for sample in ahead if sample is not None][:size]
            for _ in range(size):
                ahead.popleft()

    def _decoded(self, skip: int) -> Iterator[Sample | None]:
        """What stands at every place after the first `skip`, None for a bad sample."""
        for key, members, shard in itertools.islice(self._undecoded(), skip, None):
            self.seen += 1
            try:
                sample = decode_sample(members, key)
            except BadSample as error:
                self._record_bad(key, shard, str(error))
                sample = None
            yield sample

    def _undecoded(self) -> Iterator[tuple[str, dict[str, bytes], str]]:
        for epoch in itertools.count():
            # All streams draw the same order of shards and take every n-th sample of the whole.
            order = np.random.default_rng(distributed.derived_seed(self.options.seed, "shards", epoch))
            paths = [self.index.paths[i] for i in order.permutation(len(self.index.paths))]
            rng = np.random.default_rng(distributed.derived_seed(self.options.seed, "buffer", epoch, self.stream))
            share = itertools.islice(self._in_order(paths), self.stream, None, self.streams)
            yield from _shuffled(share, self.options.shuffle_buffer // self.streams, rng)

    def _in_order(self, paths: list[str]) -> Iterator[tuple[str, dict[str, bytes], str]]:
        for path in paths:
            for key, members in read_members(path):
                yield key, members, path

    def _record_bad(self, key: str, shard: str, reason: str) -> None:
        self.bad += 1
        if self.quarantine is not None:
            line = json.dumps({"key": key, "shard": shard, "reason": reason}, ensure_ascii=False)
            with self.quarantine.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        if self.seen >= 20 and self.bad > self.options.max_bad_share * self.seen:
            raise ShardError(
                f"data.shards: {self.bad} of the first {self.seen} samples cannot be used (the last: {shard}, {key}:"
                f" {reason}), more than data.max_bad_share = {self.options.max_bad_share}; mend the shards, or"
                " raise it. All are listed in quarantine.jsonl."
            )


def _shuffled(items: Iterable[Any], size: int, rng: np.random.Generator) -> Iterator[Any]:
    """The items in an order drawn through a buffer of `size`."""
    buffer: list[Any] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
        elif size:
            place = int(rng.integers(size))
            drawn, buffer[place] = buffer[place], item
            yield drawn
        else:
            yield item
    for place in rng.permutation(len(buffer)):
        yield buffer[place]


class ShardBatches(IterableDataset):
    """Batches of this rank, `batches` of them from number `first_batch` on (numbers of this rank's own)."""

    def __init__(
        self,
        index: ShardIndex,
        options: StreamOptions,
        batches: int,
        first_batch: int = 0,
        quarantine: Path | None = None,
    ) -> None:
        self.index, self.options = index, options
        self.batches, self.first_batch, self.quarantine = batches, first_batch, quarantine
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        workers = max(1, options.workers)
        needed = self.world_size * workers * options.batch_size
        if index.samples < needed:
            raise UserError(
                f"data.shards: {index.samples} samples are too few for {self.world_size} ranks x {workers} workers x"
                f" batches of {options.batch_size}: at least {needed}; add samples, or lower data.batch_size."
            )

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        # The loader asks its workers in turn: after a resume, worker 0 goes on with the stream whose turn it is.
        local = (worker + self.first_batch) % workers
        streams = self.world_size * workers
        stream = SampleStream(self.index, self.options, self.rank * workers + local, streams, self.quarantine)
        mine = range(local, self.first_batch + self.batches, workers)
        done = sum(1 for number in mine if number < self.first_batch)
        for samples in itertools.islice(stream.batches(done), len(mine) - done):
            yield collate(samples, self.options.picture_pixels)


def fit_picture(sample: Sample, side: int) -> Sample:
    """The sample with its picture resized to side x side (as AnyWord does); polygons are relative and stay."""
    if sample.picture.shape[:2] == (side, side):
        return sample
    picture = Image.fromarray(sample.picture).resize((side, side), Image.Resampling.LANCZOS, reducing_gap=2)
    return Sample(
        sample.key, np.asarray(picture), sample.caption, sample.layout, sample.objects, sample.source, sample.licence
    )


def collate(samples: list[Sample], side: int) -> Batch:
    """A batch of samples at side x side pixels, with their glyph maps."""
    pictures = np.stack([fit_picture(sample, side).picture for sample in samples])
    maps = np.stack([draw_glyph_map(sample.layout, side, side) for sample in samples])
    ignored = np.stack([ignore_mask(sample.layout, side, side) for sample in samples])
    return Batch(
        keys=tuple(sample.key for sample in samples),
        captions=tuple(sample.caption for sample in samples),
        layouts=tuple(sample.layout for sample in samples),
        pictures=torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1,
        glyph_maps=torch.from_numpy(maps)[:, None].expand(-1, 3, -1, -1) * 2 - 1,
        loss_weights=torch.from_numpy(~ignored)[:, None].float(),
    )
