"""The training dataset: shards as an exact, endless stream of batches.

    1  plan      which samples, of which bucket            shuffle.plan_batches (arithmetic: nothing is read)
    2  read      their members from the tars, as bytes     shards.reader.ShardReader
    3  decode    bytes -> Sample; bad ones: quarantine     decoding.decode_sample
    4  fit       stretched, or cropped to the bucket       buckets.fit_sample
    5  collate   one Batch, with rendered glyph maps       collate.collate

With cached latents, stage 3 is `decode_cached`, stage 5 `collate_cached`, and nothing is left to fit.

Batch number i of a rank is a function of (shards, options, rank, world size) and i: any worker can make it, and a run
that resumes at batch k decodes nothing of what comes before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar, cast

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from vlad.data.batch_buffers import ALIGNMENT_BYTES, BatchBuffers, Buffer
from vlad.data.buckets import fit_sample, nearest_bucket, nearest_buckets, stretch_image
from vlad.data.collate import collate, collate_cached
from vlad.data.decoding import MEMBER_KINDS, BadSample, decode_sample
from vlad.data.latent_cache.format import CACHED_KINDS, decode_cached
from vlad.data.options import StreamOptions
from vlad.data.quarantine import Quarantine
from vlad.data.shard_sets import ShardSets
from vlad.data.shards.reader import ShardError, ShardReader, UnreadableSample, image_sizes
from vlad.data.shards.writer import SIZES_SUFFIX
from vlad.data.shuffle import BatchPlan, MixedOrder, SetOrder, plan_batches
from vlad.data.storage.locations import errors_naming
from vlad.types import Batch, Sample
from vlad.utils import distributed

# Batches in a worker's hands (the loader asks for two ahead of the one in work), and in the trainer's.
BATCHES_PER_WORKER, BATCHES_IN_USE = 3, 4
MIN_SAMPLES_TO_JUDGE = 20  # before so many are read the share of bad ones says nothing

Decoded = TypeVar("Decoded")


class ShardBatches(IterableDataset):
    """`batches` batches of this rank, from number `first_batch` on."""

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
        self.shapes = options.shapes
        # Made once, before the workers are forked: all of them see the same pages.
        self.buffers = BatchBuffers(
            options.workers * BATCHES_PER_WORKER + BATCHES_IN_USE, options.batch_size * self._sample_bytes()
        )
        # The bucket of every sample, an array per set; None: there is only one bucket.
        self.buckets = None
        if len(self.shapes) > 1:
            self.buckets = tuple(
                nearest_buckets(self.shapes, image_sizes(index, options.fetch))[sets.chosen(number)]
                for number, index in enumerate(sets.indexes)
            )

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        order = rank_order(self.sets, self.options, self.rank, self.world_size)
        plans = plan_batches(order, self.options.batch_size, self.buckets, self.first_batch)
        # The loader asks its workers in turn, beginning with the first.
        own_plans = itertools.islice(plans, worker, self.batches, workers)
        batches = self._cached_batches(own_plans) if self.sets.cached else self._image_batches(own_plans)
        for batch, buffer in batches:
            yield batch if info is None else self.buffers.hand_over(buffer, batch)

    def _image_batches(self, plans: Iterator[BatchPlan]) -> Iterator[tuple[Batch, Buffer]]:
        source = SampleSource(self.sets, self.options, self.quarantine, decode_sample)
        for plan in plans:
            shape, buffer = self.shapes[plan.bucket], self.buffers.take()
            images = buffer.empty(self.options.batch_size, shape.height, shape.width, 3)  # B H W 3
            samples = self._read_samples(plan, source, images.numpy())
            for sample in samples:
                self._check_bucket(sample, plan.bucket)
            fitted = [fit_sample(sample, shape, self.options.stretches) for sample in samples]
            yield collate(fitted, buffer, images), buffer

    def _cached_batches(self, plans: Iterator[BatchPlan]) -> Iterator[tuple[Batch, Buffer]]:
        source = SampleSource(self.sets, self.options, self.quarantine, decode_cached)
        for plan in plans:
            samples, buffer = self._read_samples(plan, source), self.buffers.take()
            for other in samples:
                if other.latents.shape != samples[0].latents.shape:
                    raise ShardError(
                        f"data.cache: the latents of {other.sample.key} have another shape than the file of sizes"
                        " beside its shard says; make the cache again with tools/cache.py."
                    )
            yield collate_cached(samples, buffer), buffer

    def _read_samples(
        self, plan: BatchPlan, source: SampleSource[Decoded], images: np.ndarray | None = None
    ) -> list[Decoded]:
        """The samples of a batch, each decoded into its row of `images` if it fits.

        Good samples are repeated in the place of bad ones.
        """
        good: list[Decoded] = []
        for set_number, number in zip(plan.sets, plan.samples, strict=True):
            into = () if images is None else (images[len(good)],)
            sample = source.read(int(set_number), int(number), *into)
            good += [] if sample is None else [sample]
        if not good:
            good = [self._next_good(plan, source)]
        missing = len(plan.samples) - len(good)
        return good + [good[number % len(good)] for number in range(missing)]

    def _next_good(self, plan: BatchPlan, source: SampleSource[Decoded]) -> Decoded:
        """The next good sample of the bucket, for a batch of nothing but bad ones."""
        set_number, last = int(plan.sets[-1]), int(plan.samples[-1])
        count = sum(self.sets.counts(set_number))
        for step in range(1, count):
            number = (last + step) % count
            if self.buckets is None or self.buckets[set_number][number] == plan.bucket:
                sample = source.read(set_number, number)
                if sample is not None:
                    return sample
        raise ShardError(
            f"{self.sets.option}: not one sample of a batch can be used; all are listed in quarantine.jsonl."
        )

    def _check_bucket(self, sample: Sample, bucket: int) -> None:
        """Raises ShardError for an image that belongs to another bucket than its batch was planned with."""
        height, width = sample.image.shape[:2]
        if self.buckets is not None and nearest_bucket(self.shapes, width, height) != bucket:
            raise ShardError(
                f"{self.sets.option}: {sample.key} has {width} x {height} pixels, but the file of sizes beside its"
                f" shard (*{SIZES_SUFFIX}) says otherwise; remove that file, and the images' own headers are read."
            )

    def _sample_bytes(self) -> int:
        """About the most that a sample takes in a batch."""
        if self.sets.cached:  # the arrays as the shards hold them, and the mask of ignored regions
            shard_bytes = sum(shard.bytes or 0 for index in self.sets.indexes for shard in index.shards)
            return math.ceil(1.25 * shard_bytes / self.sets.samples)
        return max(5 * shape.width * shape.height for shape in self.shapes) + ALIGNMENT_BYTES  # image, ink, mask


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


class SampleSource(Generic[Decoded]):
    """Reads and decodes samples by their numbers; counts bad ones and lists them in the quarantine file.

    `decode` takes a sample's members by kind, its key, and whatever else `read` is given. Numbers count the chosen
    samples of a set (`ShardSets.chosen`).
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

    def read(self, set_number: int, sample: int, *into: np.ndarray) -> Decoded | None:
        """The sample, or None for a bad one. Raises ShardError when too many have been bad."""
        self.seen += 1
        choice = self.sets.choices[set_number] if self.sets.choices else None
        sample = sample if choice is None else int(choice[sample])
        key, shard = f"sample {sample}", ""
        try:
            with errors_naming(self.sets.option):
                raw = self.readers[set_number].read(sample)
            key, shard = raw.key, raw.shard
            decoded = self.decode(raw.members, raw.key, *into)
            if isinstance(decoded, Sample):
                decoded = replace(decoded, layout=replace(decoded.layout, glyph_font=self.options.glyph_font))
                return cast(Decoded, self.sets.with_prefix(set_number, decoded))
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
        if self.seen >= MIN_SAMPLES_TO_JUDGE and self.bad > self.options.max_bad_share * self.seen:
            raise ShardError(
                f"{self.sets.option}: {self.bad} of the first {self.seen} samples cannot be used (the last: {shard},"
                f" {key}: {reason}), more than data.max_bad_share = {self.options.max_bad_share};"
                f" {'make the cache again' if self.sets.cached else 'fix the shards'}, or raise it. All are"
                " listed in quarantine.jsonl."
            )


def first_samples(sets: ShardSets, options: StreamOptions, count: int) -> list[Sample]:
    """The first good samples of the order, stretched to a square: for statistics, sample grids and checks."""
    order, source = rank_order(sets, options, 0, 1), SampleSource(sets, options, None, decode_sample)
    found: list[Sample] = []
    for position in range(sets.samples):
        if len(found) == count:
            break
        at = order.samples(position, 1)
        sample = source.read(int(at.sets[0]), int(at.samples[0]))
        if sample is not None:
            found.append(stretch_image(sample, options.image_pixels))
    return found
