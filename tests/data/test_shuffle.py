"""Shuffling as arithmetic: any stretch of the order is the same, read from anywhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlad.data.shuffle import MIXING_BLOCK, MixedOrder, SetOrder, plan_batches

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=8).map(tuple)


@given(lengths, st.integers(0, 40), st.integers(1, 3), st.integers(0, 2**31))
def test_the_ranks_share_an_epoch_without_a_sample_twice(counts, window, world_size, seed):
    total = sum(counts)
    if total < world_size:
        return
    each = total // world_size
    for epoch in range(2):
        seen = np.concatenate(
            [SetOrder(counts, window, seed, rank, world_size).samples(epoch * each, each) for rank in range(world_size)]
        )
        assert len(set(seen.tolist())) == world_size * each
        assert seen.min() >= 0
        assert seen.max() < total


@given(lengths, st.integers(0, 40), st.integers(0, 200), st.integers(0, 60))
def test_a_stretch_is_the_same_read_from_anywhere(counts, window, first, count):
    order = SetOrder(counts, window, seed=5)
    whole = order.samples(0, first + count)
    assert order.samples(first, count).tolist() == whole[first:].tolist()


def test_a_rank_reads_few_shards_at_a_time():
    """A stretch of the order is contiguous: shards are fetched once, save where two ranks meet."""
    counts = (100,) * 40
    touched = [set((SetOrder(counts, 200, 0, rank, 4).samples(0, 1000) // 100).tolist()) for rank in range(4)]
    assert sum(map(len, touched)) <= 40 + 3


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=4), st.integers(0, 5000), st.integers(1, 3000))
def test_a_mixture_is_the_same_read_from_anywhere(weights, first, count):
    orders = tuple(SetOrder((7, 20), 10, seed) for seed in range(len(weights)))
    mixture = MixedOrder(orders, tuple(weights), seed=1)
    whole, part = mixture.samples(0, first + count), mixture.samples(first, count)
    assert part.sets.tolist() == whole.sets[first:].tolist()
    assert part.samples.tolist() == whole.samples[first:].tolist()


def test_a_mixture_keeps_its_shares():
    orders = tuple(SetOrder((1000,), 10, seed) for seed in range(3))
    numbers = MixedOrder(orders, (1.0, 2.0, 5.0), seed=1).samples(0, 8 * MIXING_BLOCK)
    assert np.bincount(numbers.sets).tolist() == [1000, 2000, 5000]
    for number in range(3):  # each set's own order, whole epochs
        mine = numbers.samples[numbers.sets == number]
        assert sorted(mine[:1000].tolist()) == list(range(1000))


@pytest.mark.parametrize("first", [1, 7, 40, 333])
def test_bucketed_batches_are_the_same_from_any_start(first, monkeypatch):
    monkeypatch.setattr("vlad.data.shuffle.PLANNING_BLOCK", 64)
    order = MixedOrder((SetOrder((50, 70), 20, 3),), (1.0,), 0)
    kinds = (np.random.default_rng(0).integers(0, 4, 120),)

    def batches(first, count):
        plans = plan_batches(order, 6, kinds, first)
        return [(plan.bucket, plan.samples.tolist()) for plan, _ in zip(plans, range(count), strict=False)]

    whole = batches(0, first + 20)
    assert batches(first, 20) == whole[first:]
    assert all(kinds[0][samples].tolist() == [bucket] * 6 for bucket, samples in whole)


def test_bucketed_batches_lose_nothing():
    order = MixedOrder((SetOrder((50, 70), 20, 3),), (1.0,), 0)
    kinds = (np.random.default_rng(0).integers(0, 4, 120),)
    plans = plan_batches(order, 6, kinds)
    times = np.bincount(np.concatenate([next(plans).samples for _ in range(200)]), minlength=120)
    assert times.min() >= 9  # ten epochs, less what waits for its batch at the end
    assert times.max() <= 11
