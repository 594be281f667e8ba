"""Which samples of a set are read, and how often: some held out and never trained on, the rest repeated.

A choice is the numbers (int64) of a set's samples in rising order, each as often as an epoch reads it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vlad.data.shard_sets import ShardSets
from vlad.utils import distributed
from vlad.utils.errors import UserError


def hold_out(sets: ShardSets, share: float, seed: int) -> tuple[ShardSets, ShardSets]:
    """The samples to train on, and the `share` of each set (rounded, at least one) that is not; drawn from the seed.

    The second holds only sets of which something is held out. Raises UserError where nothing would be left to train on.
    """
    trained: list[np.ndarray] = []
    held: list[np.ndarray] = []
    for number, index in enumerate(sets.indexes):
        count = max(1, round(share * index.samples))
        if count >= index.samples:
            raise UserError(
                f"validation.share: {share:g} of {index.samples} images leaves none to train on; add images, or set"
                " validation.share=0."
            )
        drawn = np.random.default_rng(distributed.derived_seed(seed, "held out", number)).permutation(index.samples)
        held.append(np.sort(drawn[:count]))
        trained.append(np.sort(drawn[count:]))
    return replace(sets, choices=tuple(trained)), replace(sets, choices=tuple(held))


def repeat_samples(sets: ShardSets, times: int) -> ShardSets:
    """The same samples, each so many times an epoch: a set that is smaller than a batch fills it."""
    if times == 1:
        return sets
    return replace(sets, choices=tuple(np.repeat(sets.chosen(number), times) for number in range(len(sets.indexes))))


def prefix_captions(sets: ShardSets, prefix: str) -> ShardSets:
    """The same samples, with `prefix` (a trigger word) in front of every caption that does not hold it already."""
    return replace(sets, prefixes=(prefix,) * len(sets.indexes))


def mix_sets(first: ShardSets, second: ShardSets, share: float) -> ShardSets:
    """Both together: of the samples that are read, `share` come from the second, the rest from the first."""
    total_first, total_second = sum(first.weights), sum(second.weights)

    def choices(sets: ShardSets) -> tuple[np.ndarray | None, ...]:
        return sets.choices or (None,) * len(sets.indexes)

    def prefixes(sets: ShardSets) -> tuple[str, ...]:
        return sets.prefixes or ("",) * len(sets.indexes)

    return ShardSets(
        (*first.indexes, *second.indexes),
        (
            *((1 - share) * weight / total_first for weight in first.weights),
            *(share * weight / total_second for weight in second.weights),
        ),
        option=first.option,
        choices=choices(first) + choices(second),
        prefixes=prefixes(first) + prefixes(second),
    )
