"""The training/held-out split, and what else changes which samples of a shard set are read: repeats, prefixes, mixing.

All of it is a choice of samples (`ShardSets.choices`): their numbers, ascending, each as often as an epoch reads it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vlad.data.shard_sets import ShardSets
from vlad.utils import distributed
from vlad.utils.errors import UserError


def hold_out(sets: ShardSets, share: float, seed: int) -> tuple[ShardSets, ShardSets]:
    """Splits every set at random by the seed: the samples to train on, and the `share` (at least one) held out.

    Raises UserError where nothing would be left to train on.
    """
    training: list[np.ndarray] = []
    held_out: list[np.ndarray] = []
    for number, index in enumerate(sets.indexes):
        count = max(1, round(share * index.samples))
        if count >= index.samples:
            raise UserError(
                f"validation.share: {share:g} of {index.samples} images leaves none to train on; add images, or set"
                " validation.share=0."
            )
        rng = np.random.default_rng(distributed.derived_seed(seed, "held out", number))
        shuffled = rng.permutation(index.samples)
        held_out.append(np.sort(shuffled[:count]))
        training.append(np.sort(shuffled[count:]))
    return replace(sets, choices=tuple(training)), replace(sets, choices=tuple(held_out))


def repeat_samples(sets: ShardSets, times: int) -> ShardSets:
    """The same samples, each `times` times per epoch, so that a set smaller than a batch fills it."""
    if times == 1:
        return sets
    return replace(sets, choices=tuple(np.repeat(sets.chosen(number), times) for number in range(len(sets.indexes))))


def prefix_captions(sets: ShardSets, prefix: str) -> ShardSets:
    """The same samples, with `prefix` (a trigger word) before every caption that does not contain it."""
    return replace(sets, prefixes=(prefix,) * len(sets.indexes))


def mix_sets(first: ShardSets, second: ShardSets, share: float) -> ShardSets:
    """Mixes two groups of sets: `share` of the samples that are read come from the second."""
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
