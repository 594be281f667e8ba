"""Shard sets: which shards a run reads, which of their samples, and by what weights they are mixed."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace

import numpy as np

from vlad.data.options import FetchOptions
from vlad.data.shards.reader import ShardIndex, index_shards
from vlad.data.storage.locations import SHARDS_OPTION, errors_naming
from vlad.types import Sample
from vlad.utils.errors import UserError, counted


@dataclass(frozen=True)
class ShardSets:
    """The shard sets that a run reads, each with its weight in the mixture."""

    indexes: tuple[ShardIndex, ...]
    weights: tuple[float, ...] = (1.0,)
    # Companion shards with cached states (`latent_cache`) in place of images.
    cached: bool = False
    # The option that names the shards, for messages.
    option: str = SHARDS_OPTION
    # The samples that are read of each set (`splits`), and the prefix of its captions; empty: all, and none.
    choices: tuple[np.ndarray | None, ...] = field(default=(), compare=False)
    prefixes: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """The number of samples that are read, of all sets together."""
        return sum(sum(self.counts(number)) for number in range(len(self.indexes)))

    def chosen(self, number: int) -> np.ndarray:
        """The numbers of the samples that are read of a set, ascending (int64)."""
        choice = self.choices[number] if self.choices else None
        return np.arange(self.indexes[number].samples) if choice is None else choice

    def counts(self, number: int) -> tuple[int, ...]:
        """The number of samples that are read of each shard of a set."""
        if not self.choices or self.choices[number] is None:
            return self.indexes[number].counts
        ends = np.searchsorted(self.chosen(number), self.indexes[number].starts)
        return tuple(np.diff(ends).tolist())

    def with_prefix(self, number: int, sample: Sample) -> Sample:
        """A sample of a set, the set's prefix before its caption unless that has it already as words of its own."""
        prefix = self.prefixes[number] if self.prefixes else ""
        if not prefix or re.search(rf"(?<![\w-]){re.escape(prefix)}(?![\w-])", sample.caption):
            return sample
        return replace(sample, caption=f"{prefix}, {sample.caption}")

    @property
    def shards(self) -> int:
        """The number of shards of all sets."""
        return sum(len(index.shards) for index in self.indexes)

    @property
    def fingerprint(self) -> str:
        """Changes with what is read and how it is mixed."""
        whole = "/".join(
            f"{index.fingerprint}*{weight:g}" for index, weight in zip(self.indexes, self.weights, strict=True)
        )
        if not self.choices and not self.prefixes:
            return whole
        digest = hashlib.sha256(repr(self.prefixes).encode())
        for number in range(len(self.indexes)):
            digest.update(self.chosen(number).tobytes())
        return f"{whole}#{digest.hexdigest()[:16]}"


def open_sets(patterns: dict[str, float], fetch: FetchOptions | None = None, option: str | None = None) -> ShardSets:
    """The shard sets that patterns name, with their weights. Raises UserError like `index_shards`.

    `option` names them in messages (None: data.shards, or data.mix for several).
    """
    option = option or (SHARDS_OPTION if len(patterns) == 1 else "data.mix")
    total = sum(patterns.values())
    for pattern, weight in patterns.items():
        if not weight / total >= 1e-3:
            raise UserError(
                f"data.mix: the weight of {pattern} ({weight:g}) is under a thousandth of all; raise it, or leave the"
                " set out."
            )
    with errors_naming(option):
        indexes = tuple(index_shards(pattern, fetch) for pattern in patterns)
    return ShardSets(indexes, tuple(patterns.values()), option=option)


def check_enough_samples(sets: ShardSets, batch_size: int, world_size: int) -> None:
    """Raises UserError where a set holds fewer samples than one batch of every rank."""
    wanted = batch_size * world_size
    for number in range(len(sets.indexes)):
        count = sum(sets.counts(number))
        if count < wanted:
            raise UserError(
                f"{sets.option}: {counted(count, 'sample')} {'is' if count == 1 else 'are'} too few for"
                f" {counted(world_size, 'rank')} x batches of {batch_size}: at least {wanted}; add samples, lower"
                f" data.batch_size, or read each several times an epoch: data.repeats={-(-wanted // max(1, count))}."
            )
