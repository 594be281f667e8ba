"""The data of a run: shards opened, split into training and held-out samples, repeated, behind a trigger word.

shards --+-- held out (validation.share) -----------------------------> validation passes
         +-- the rest, data.repeats times, with data.trigger_word --+--> training
base -- generates prior.images, once, into RUN/prior ---------------+
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlad.config.schema import Config
from vlad.data.dataset import first_samples
from vlad.data.shard_sets import ShardSets, open_sets
from vlad.data.splits import hold_out, prefix_captions, repeat_samples
from vlad.utils.errors import UserError, counted

CHECKED_SAMPLES = 64  # read for a line of text where no manifest says how many there are


@dataclass(frozen=True)
class RunData:
    """The shard sets of a run."""

    # What a stage trains on: `shards`, and where `prior.images` is set images of the base's beside them.
    training: ShardSets
    shards: ShardSets
    # Held out of the shards by validation.share; None: nothing.
    held_out: ShardSets | None
    # Pairs of data.held_out, whose retrieval is measured; None: none are named.
    pairs: ShardSets | None


def open_data(config: Config) -> RunData:
    """Opens a run's shards, without images of a prior. Raises UserError for missing shards."""
    sets = open_sets(config.data.sets, config.data.fetch)
    pairs = None
    if config.data.held_out is not None:
        pairs = open_sets({config.data.held_out: 1.0}, config.data.fetch, "data.held_out")
    held_out = None
    if config.validation.share:
        whole = sets
        sets, held_out = hold_out(sets, config.validation.share, config.seed)
        _refuse_too_many_held_out(config, whole, sets)
    sets = repeat_samples(sets, config.data.repeats)
    if config.data.trigger_word is not None:
        prefix = config.data.trigger_word.strip(" ,")
        sets = prefix_captions(sets, prefix)
        held_out = None if held_out is None else prefix_captions(held_out, prefix)
    return RunData(sets, sets, held_out, pairs)


def _refuse_too_many_held_out(config: Config, whole: ShardSets, rest: ShardSets) -> None:
    """Raises UserError where a set fills a batch, and what is not held out of it does not."""
    repeats, batch = config.data.repeats, config.data.batch_size
    for number, index in enumerate(whole.indexes):
        left = len(rest.chosen(number))
        if index.samples * repeats >= batch > left * repeats:
            most = math.floor(100 * (1 - -(-batch // repeats) / index.samples)) / 100
            raise UserError(
                f"validation.share: {config.validation.share:g} of {counted(index.samples, 'image')} leaves {left} to"
                f" train on, fewer than a batch (data.batch_size={batch}); hold out at most {most:g}, lower"
                f" data.batch_size, or read each several times an epoch: data.repeats={-(-batch // left)}."
            )


def refuse_without_text(config: Config, sets: ShardSets) -> None:
    """Raises UserError for shards without a line of text in a run that learns layouts."""
    if config.layout.kind == "none":
        return
    statistics = [shard.statistics for index in sets.indexes for shard in index.shards]
    if all(known is not None and "valid_lines" in known for known in statistics):
        lines = sum(int(known["valid_lines"]) for known in statistics if known is not None)
    else:
        samples = first_samples(sets, config.data.stream(config.seed), CHECKED_SAMPLES)
        if not samples:
            raise UserError(
                f"{sets.option}: not one sample of {', '.join(config.data.sets)} can be used; python"
                " tools/validate_shards.py SHARDS says what is wrong with them."
            )
        lines = sum(line.valid for sample in samples for line in sample.layout.lines)
    if not lines:
        raise UserError(
            f"{sets.option}: not one line of text is annotated in {', '.join(config.data.sets)}, and layouts are"
            " learned from them; have an OCR engine read the images (python tools/make_shards.py FOLDER --out"
            " SHARDS), or write `lines` into their records (docs/data.md)."
        )
