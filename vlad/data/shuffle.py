"""Shuffling as arithmetic: any position of the order is found without reading what comes before it.

    shard lengths -> shuffled shards, anew each epoch -> this rank's stretch of them -> shuffled within windows
              -> several sets mixed by weight -> batches, of one bucket each

Everything is a function of (shards, seed, rank, world size), so a run resumes at any batch, and any worker can make
any batch. A rank's stretch is contiguous in the order of shards: it reads few shards at a time, and of a remote set
each shard is fetched by one rank, or by two where stretches meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vlad.utils import distributed

MIXING_BLOCK = 1000  # positions over which the shares of mixed sets are kept exactly
PLANNING_BLOCK = 8192  # positions that are sorted into buckets at once


class SetOrder:
    """The endless order of one rank over one shard set: positions 0, 1, ... -> numbers of samples.

    Samples are numbered through the set in the shards' own order. Every epoch gives each rank the same count; the
    remainder (less than one sample per rank) is another one in every epoch.
    """

    def __init__(self, counts: tuple[int, ...], window: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.counts, self.window, self.seed = counts, window, seed
        self.rank, self.world_size = rank, world_size
        self.epoch_length = sum(counts) // world_size
        assert self.epoch_length > 0, "the caller makes sure that every rank has a sample"
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._shards = lru_cache(maxsize=2)(self._shuffled_shards)
        self._window = lru_cache(maxsize=4)(self._shuffled_window)

    def samples(self, first: int, count: int) -> np.ndarray:
        """The numbers of the samples at `count` positions from `first` on (int64)."""
        parts = []
        while count > 0:
            epoch, position = divmod(first, self.epoch_length)
            window = position // self.window if self.window > 1 else 0
            start = window * self.window if self.window > 1 else 0
            numbers = self._window(epoch, window)[position - start :][:count]
            parts.append(numbers)
            first, count = first + len(numbers), count - len(numbers)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _shuffled_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's order of shards, and the position at which each begins."""
        rng = np.random.default_rng(distributed.derived_seed(self.seed, "shards", epoch))
        order = rng.permutation(len(self.counts))
        lengths = np.array(self.counts)[order]
        return order, np.concatenate([[0], np.cumsum(lengths)])

    def _shuffled_window(self, epoch: int, window: int) -> np.ndarray:
        """The samples of a window of this rank's stretch, shuffled."""
        size = self.window if self.window > 1 else self.epoch_length
        start = window * size
        positions = np.arange(start, min(start + size, self.epoch_length)) + self.rank * self.epoch_length
        order, begins = self._shards(epoch)
        shard = np.searchsorted(begins, positions, side="right") - 1
        numbers = self._starts[order[shard]] + positions - begins[shard]
        if self.window > 1:
            parts = (self.seed, "window", epoch, window, self.rank, self.world_size)
            numbers = np.random.default_rng(distributed.derived_seed(*parts)).permutation(numbers)
        return numbers


@dataclass(frozen=True)
class SampleNumbers:
    """Samples at consecutive positions: the number of the set (N) and of the sample in it (N)."""

    sets: np.ndarray
    samples: np.ndarray


class MixedOrder:
    """Several sets mixed by weight: every thousand positions hold each set's share of samples, shuffled."""

    def __init__(self, orders: tuple[SetOrder, ...], weights: tuple[float, ...], seed: int) -> None:
        self.orders, self.seed = orders, seed
        shares = np.cumsum(np.array(weights) / sum(weights))
        # The middle of every thousandth falls into one set's share of [0, 1).
        assigned = np.searchsorted(shares, (np.arange(MIXING_BLOCK) + 0.5) / MIXING_BLOCK, side="right")
        self._sets = np.minimum(assigned, len(orders) - 1)
        self._counts = np.bincount(self._sets, minlength=len(orders))

    def samples(self, first: int, count: int) -> SampleNumbers:
        """The samples at `count` positions (at least one) from `first` on."""
        if len(self.orders) == 1:
            return SampleNumbers(np.zeros(count, dtype=np.int64), self.orders[0].samples(first, count))
        blocks = range(first // MIXING_BLOCK, (first + count - 1) // MIXING_BLOCK + 1)
        sets, samples = [], []
        for block in blocks:
            rng = np.random.default_rng(distributed.derived_seed(self.seed, "mix", block))
            shuffled = rng.permutation(self._sets)
            numbers = np.empty(MIXING_BLOCK, dtype=np.int64)
            for index, order in enumerate(self.orders):
                each = int(self._counts[index])
                numbers[shuffled == index] = order.samples(block * each, each)
            sets.append(shuffled)
            samples.append(numbers)
        skipped = first - blocks.start * MIXING_BLOCK
        window = slice(skipped, skipped + count)
        return SampleNumbers(np.concatenate(sets)[window], np.concatenate(samples)[window])


@dataclass(frozen=True)
class BatchPlan:
    """The samples of one batch, and the number of their bucket."""

    bucket: int
    sets: np.ndarray
    samples: np.ndarray


def plan_batches(
    order: MixedOrder, batch_size: int, buckets: tuple[np.ndarray, ...] | None, first: int = 0
) -> Iterator[BatchPlan]:
    """Batches from number `first` on, endless.

    `buckets` gives the bucket of every sample, an array per set; None: all are in bucket 0, and batch i holds the
    positions from i B to (i + 1) B. Else a batch is complete when its bucket has B samples; those that wait at the end
    of an epoch form a batch with samples of the next one.
    """
    if buckets is None:
        while True:
            numbers = order.samples(first * batch_size, batch_size)
            yield BatchPlan(0, numbers.sets, numbers.samples)
            first += 1
    bucket_count = int(max(of_set.max() for of_set in buckets)) + 1
    waiting = [np.empty((0, 2), dtype=np.int64)] * bucket_count
    start = planned = 0
    while True:
        numbers = order.samples(start, PLANNING_BLOCK)
        bucket_of = np.empty(PLANNING_BLOCK, dtype=np.int64)
        for index, of_set in enumerate(buckets):
            mine = numbers.sets == index
            bucket_of[mine] = of_set[numbers.samples[mine]]
        complete: list[tuple[int, int, np.ndarray]] = []  # position of the last sample, bucket, samples
        for bucket in range(bucket_count):
            where = np.flatnonzero(bucket_of == bucket)
            rows = np.concatenate([waiting[bucket], np.stack([numbers.sets[where], numbers.samples[where]], axis=1)])
            for number in range(len(rows) // batch_size):
                last = where[(number + 1) * batch_size - 1 - len(waiting[bucket])]
                complete.append((int(last), bucket, rows[number * batch_size : (number + 1) * batch_size]))
            waiting[bucket] = rows[len(rows) // batch_size * batch_size :]
        complete.sort(key=lambda entry: entry[0])
        for _, bucket, rows in complete[max(0, first - planned) :]:
            yield BatchPlan(bucket, rows[:, 0], rows[:, 1])
        planned += len(complete)
        start += PLANNING_BLOCK
