"""Shards as an exact, endless stream of batches.

    order -> plan of a batch -> raw samples -> decode (bad samples: quarantine) -> fit to the bucket -> collate

Batch number i of a rank is a function of (shards, options, rank, world size) and i: any worker makes it, and a run that
goes on with batch k decodes nothing of what comes before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar, cast

import numpy as np
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from vlad.data.batch_buffers import ALIGNMENT_BYTES, BatchBuffers, Buffer
from vlad.data.buckets import Bucket, fit_to_bucket, nearest_bucket, nearest_buckets
from vlad.data.collate import collate, collate_cached
from vlad.data.decoding import MEMBER_KINDS, BadSample, decode_sample
from vlad.data.latent_cache.format import CACHED_KINDS, decode_cached
from vlad.data.options import StreamOptions
from vlad.data.quarantine import Quarantine
from vlad.data.shard_sets import ShardSets, check_enough_samples
from vlad.data.shards.reader import ShardError, ShardReader, UnreadableSample, image_sizes
from vlad.data.shards.writer import SIZES_SUFFIX
from vlad.data.shuffle import BatchPlan, MixedOrder, SetOrder, plan_batches
from vlad.data.storage.locations import errors_naming
from vlad.types import Batch, Sample
from vlad.utils import distributed

# Batches that are made or wait for the trainer, a worker (the loader asks for two ahead), and those that it has.
BATCHES_A_WORKER, BATCHES_IN_USE = 3, 4
QUARANTINE_AFTER = 20  # samples read before the share of bad ones says anything


Decoded = TypeVar("Decoded")


class SampleSource(Generic[Decoded]):
    """Decoded samples of all sets by their numbers. Bad ones are counted and put into quarantine.

    `decode` is given a sample's members by kind, its key, and what `read` is given besides. Numbers are those of the
    samples that the sets choose; without a choice, the sample's own.
    """

    def __init__(
        self,
        sets: ShardSets,
        options: StreamOptions,
        quarantine: Path | None,
        decode: Callable[..., Decoded],
    ) -> None:
        kinds = CACHED_KINDS if sets.cached else MEMBER_KINDS
        self.readers = [ShardReader(index, options.verify, kinds, options.fetch) for index in sets.indexes]
        self.decode = decode
        self.sets, self.options = sets, options
        self.quarantine = None if quarantine is None else Quarantine(quarantine)
        self.seen = self.bad = 0

    def read(self, set_number: int, sample: int, *room: np.ndarray) -> Decoded | None:
        """The sample, or None for a bad one. Raises ShardError when too many have been bad."""
        self.seen += 1
        choice = self.sets.choices[set_number] if self.sets.choices else None
        sample = sample if choice is None else int(choice[sample])
        key, shard = f"sample {sample}", ""
        try:
            with errors_naming(self.sets.option):
                raw = self.readers[set_number].read(sample)
            key, shard = raw.key, raw.shard
            decoded = self.decode(raw.members, raw.key, *room)
            if isinstance(decoded, Sample):
                return cast(Decoded, self.sets.with_caption(set_number, decoded))
            return decoded
        except UnreadableSample as error:
            self._record_bad(error.key, error.shard, str(error))
        except BadSample as error:
            self._record_bad(key, shard, str(error))
        return None

    def _record_bad(self, key: str, shard: str, reason: str) -> None:
        self.bad += 1
        if self.quarantine is not None:
            self.quarantine.add(key, shard, reason)
        if self.seen >= QUARANTINE_AFTER and self.bad > self.options.max_bad_share * self.seen:
            raise ShardError(
                f"{self.sets.option}: {self.bad} of the first {self.seen} samples cannot be used (the last: {shard},"
                f" {key}: {reason}), more than data.max_bad_share = {self.options.max_bad_share};"
                f" {'make the cache again' if self.sets.cached else 'mend the shards'}, or raise it. All are"
                " listed in quarantine.jsonl."
            )


def rank_order(sets: ShardSets, options: StreamOptions, rank: int, world_size: int) -> MixedOrder:
    """The order in which a rank reads the sets."""
    orders = tuple(
        SetOrder(
            sets.counts(number),
            options.shuffle_window,
            distributed.derived_seed(options.seed, "set", number),
            rank,
            world_size,
        )
        for number in range(len(sets.indexes))
    )
    return MixedOrder(orders, sets.weights, distributed.derived_seed(options.seed, "mixture", rank))


class ShardBatches(IterableDataset):
    """`batches` batches of this rank from number `first_batch` on."""

    def __init__(
        self,
        sets: ShardSets,
        options: StreamOptions,
        batches: int,
        first_batch: int = 0,
        quarantine: Path | None = None,
    ) -> None:
        self.sets, self.options = sets, options
        self.batches, self.first_batch, self.quarantine = batches, first_batch, quarantine
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        check_enough_samples(sets, options.batch_size, self.world_size)
        self.shapes = options.shapes
        # Made here, before the workers are forked: all see the same pages.
        self.buffers = BatchBuffers(
            options.workers * BATCHES_A_WORKER + BATCHES_IN_USE, options.batch_size * self._sample_bytes()
        )
        # Read here, once, before the workers are forked.
        self.buckets = (
            tuple(
                nearest_buckets(self.shapes, image_sizes(index, options.fetch))[sets.chosen(number)]
                for number, index in enumerate(sets.indexes)
            )
            if len(self.shapes) > 1
            else None
        )

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        order = rank_order(self.sets, self.options, self.rank, self.world_size)
        plans = plan_batches(order, self.options.batch_size, self.buckets, self.first_batch)
        # The loader asks its workers in turn, beginning with the first.
        mine = itertools.islice(plans, worker, self.batches, workers)
        batches = self._cached(mine) if self.sets.cached else self._decoded(mine)
        for batch, buffer in batches:
            yield batch if info is None else self.buffers.hand_over(buffer, batch)

    def _decoded(self, plans: Iterator[BatchPlan]) -> Iterator[tuple[Batch, Buffer]]:
        source = SampleSource(self.sets, self.options, self.quarantine, decode_sample)
        for plan in plans:
            shape, buffer = self.shapes[plan.bucket], self.buffers.take()
            images = buffer.empty(self.options.batch_size, shape.height, shape.width, 3)
            samples = self._read(plan, source, images.numpy())
            for sample in samples:
                self._check_shape(sample, plan.bucket)
            yield collate([fit_sample(sample, shape, self.options) for sample in samples], buffer, images), buffer

    def _cached(self, plans: Iterator[BatchPlan]) -> Iterator[tuple[Batch, Buffer]]:
        source = SampleSource(self.sets, self.options, self.quarantine, decode_cached)
        for plan in plans:
            samples, buffer = self._read(plan, source), self.buffers.take()
            for other in samples:
                if other.latents.shape != samples[0].latents.shape:
                    raise ShardError(
                        f"data.cache: {other.sample.key} has states of another shape than the sizes beside its shard"
                        " say; make the cache again with tools/cache.py."
                    )
            yield collate_cached(samples, buffer), buffer

    def _check_shape(self, sample: Sample, bucket: int) -> None:
        """Raises ShardError for an image that batches of another shape were planned with."""
        height, width = sample.image.shape[:2]
        if self.buckets is not None and nearest_bucket(self.shapes, width, height) != bucket:
            raise ShardError(
                f"{self.sets.option}: {sample.key} has {width} x {height} pixels, but the file of sizes beside its"
                f" shard (*{SIZES_SUFFIX}) says otherwise; remove that file, and the images' own headers are read."
            )

    def _sample_bytes(self) -> int:
        """About what a sample takes in a batch, at most."""
        if self.sets.cached:  # arrays as they are stored, and what is ignored
            stored = sum(shard.bytes or 0 for index in self.sets.indexes for shard in index.shards)
            return math.ceil(1.25 * stored / self.sets.samples)
        return max(5 * shape.width * shape.height for shape in self.shapes) + ALIGNMENT_BYTES  # image, ink, ignored

    def _read(self, plan: BatchPlan, source: SampleSource[Decoded], rows: np.ndarray | None = None) -> list[Decoded]:
        """The samples of a batch, each in its row if it fits; a good one stands in once more for a bad one."""
        good: list[Decoded] = []
        for of, number in zip(plan.sets, plan.samples, strict=True):
            sample = source.read(int(of), int(number), *(() if rows is None else (rows[len(good)],)))
            good += [] if sample is None else [sample]
        if not good:  # nothing but bad samples: the next one of its bucket that can be used
            good = [self._stand_in(plan, source)]
        missing = len(plan.samples) - len(good)
        return good + [good[number % len(good)] for number in range(missing)]

    def _stand_in(self, plan: BatchPlan, source: SampleSource[Decoded]) -> Decoded:
        of, last = int(plan.sets[-1]), int(plan.samples[-1])
        count = sum(self.sets.counts(of))
        for step in range(1, count):
            number = (last + step) % count
            if self.buckets is None or self.buckets[of][number] == plan.bucket:
                sample = source.read(of, number)
                if sample is not None:
                    return sample
        raise ShardError(
            f"{self.sets.option}: not one sample of a batch can be used; all are listed in quarantine.jsonl."
        )


def first_samples(sets: ShardSets, options: StreamOptions, count: int) -> list[Sample]:
    """The first good samples of the order, fitted to a square: what a run is fitted to and shown on."""
    order, source = rank_order(sets, options, 0, 1), SampleSource(sets, options, None, decode_sample)
    found: list[Sample] = []
    for place in range(sets.samples):
        if len(found) == count:
            break
        at = order.places(place, 1)
        sample = source.read(int(at.sets[0]), int(at.samples[0]))
        if sample is not None:
            found.append(stretch_image(sample, options.image_pixels))
    return found


def fit_sample(sample: Sample, shape: Bucket, options: StreamOptions) -> Sample:
    """The sample at the shape that it is trained at."""
    return stretch_image(sample, shape.side) if options.max_aspect == 1 else fit_to_bucket(sample, shape)


def stretch_image(sample: Sample, side: int) -> Sample:
    """The sample with its image resized to side x side (as AnyWord does); polygons are relative and stay."""
    if sample.image.shape[:2] == (side, side):
        return sample
    image = Image.fromarray(sample.image).resize((side, side), Image.Resampling.LANCZOS, reducing_gap=2)
    return replace(sample, image=np.asarray(image))
