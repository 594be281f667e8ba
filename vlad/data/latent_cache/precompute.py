"""Precomputing latents and text states: companion shards of what frozen models give for every sample.

    sample -> fitted to its bucket -> encode (the caller's models) -> a cached sample (`format`)

A cache carries the fingerprint of all that it depends on, and is opened for nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlad.data.buckets import fit_sample, nearest_bucket
from vlad.data.collate import collate
from vlad.data.dataset import SampleSource
from vlad.data.decoding import decode_sample
from vlad.data.latent_cache.format import encode_cached
from vlad.data.options import StreamOptions
from vlad.data.shard_sets import ShardSets
from vlad.data.shards.reader import index_shards, sizes_beside
from vlad.data.shards.writer import MANIFEST, publish_shard, shard_entry, write_manifest, write_tar, write_text_file
from vlad.layout.fonts import CANONICAL_FONT, installed_optional_fonts
from vlad.types import Batch, CachedStates, Sample, TextStates
from vlad.utils.errors import UserError
from vlad.utils.json_objects import read_object
from vlad.utils.paths import checked_path

CACHE_VERSION = 2  # rises when the same options give other contents: glyph maps, fitting, the format
BEGUN = "begun.json"

Encode = Callable[[Batch], CachedStates]
Fingerprint = dict[str, Any]


def data_fingerprint(sets: ShardSets, options: StreamOptions) -> Fingerprint:
    """What a cache depends on in the data: the shards, the shapes of images, the fonts of glyph maps."""
    return {
        "cache_version": CACHE_VERSION,
        "shards": sets.fingerprint,
        "shapes": [[shape.width, shape.height] for shape in options.shapes],
        "fit": "stretch" if options.stretches else "crop",
        # The default is left out, so that caches of earlier versions stay valid.
        "fonts": installed_optional_fonts() + ([] if options.glyph_font == CANONICAL_FONT else [options.glyph_font]),
    }


def weights_digest(module: nn.Module) -> str:
    """Changes with any weight, its shape or its precision."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def write_cache(
    sets: ShardSets,
    options: StreamOptions,
    encode: Encode,
    directory: Path,
    fingerprint: Fingerprint,
    on_progress: Callable[[int], None],
    quarantine: Path | None = None,
) -> int:
    """Writes a companion shard for every shard, and the manifest last; returns the number of cached samples.

    An interrupted call resumes: finished shards with the same fingerprint are kept. Raises UserError when the directory
    holds anything else. `on_progress` is called with the number of samples that are done.
    """
    _claim(directory, fingerprint)
    source = SampleSource(sets, options, quarantine, decode_sample)
    entries = []
    shard = 0
    for number, index in enumerate(sets.indexes):
        for start, count in zip(index.starts, index.counts, strict=False):
            path = directory / f"{shard:06d}.tar"
            shard += 1
            entry_file = path.with_suffix(".entry.json")
            if path.exists() and entry_file.exists():  # written last: a shard without it is made again
                entries.append(json.loads(entry_file.read_text(encoding="utf-8")))
                on_progress(count)
                continue
            members, shapes = [], []
            for sample, states, shape in _encoded(source, number, int(start), count, options, encode, on_progress):
                members.append((sample.key, encode_cached(sample, states)))
                shapes.append(shape)
            if not members:
                continue
            temporary = path.with_suffix(".tar.partial")
            write_tar(members, temporary)
            entry = shard_entry(temporary, len(members), name=path.name)
            publish_shard(temporary, directory, path.name, shapes)
            write_text_file(json.dumps(entry), directory, entry_file.name)
            entries.append(entry)
    write_manifest(directory, entries, {"made_by": "tools/cache.py", "fingerprint": fingerprint})
    (directory / BEGUN).unlink()
    for path in directory.glob("*.entry.json"):
        path.unlink()
    return sum(entry["samples"] for entry in entries)


def _claim(directory: Path, fingerprint: Fingerprint) -> None:
    """Raises UserError when the directory holds a finished cache, or one begun with another fingerprint."""
    begun = directory / BEGUN
    if (directory / MANIFEST).exists():
        raise UserError(f"{directory} holds a finished cache or shards; name another directory, or remove it.")
    if begun.exists():
        try:
            known = read_object(begun)
        except ValueError:  # the machine stopped while it was written
            known = None
        if known != fingerprint:
            raise UserError(
                f"{directory} holds a cache that was begun for other models, data or options; name another directory,"
                " or remove it."
            )
    elif any(directory.glob("*.tar")):
        raise UserError(f"{directory} holds shards already; name another directory.")
    else:
        begun.write_text(json.dumps(fingerprint), encoding="utf-8")


def _encoded(
    source: SampleSource[Sample],
    set_number: int,
    start: int,
    count: int,
    options: StreamOptions,
    encode: Encode,
    on_progress: Callable[[int], None],
) -> Iterator[tuple[Sample, CachedStates, tuple[int, int]]]:
    """The good samples of a shard in its order, with states and shapes; they are encoded in batches of one shape."""
    found: dict[int, tuple[Sample, CachedStates, tuple[int, int]]] = {}
    waiting: dict[int, list[tuple[int, Sample]]] = {}

    def flush(bucket: int) -> None:
        numbers, samples = zip(*waiting.pop(bucket), strict=True)
        states = encode(collate(list(samples)))
        shape = options.shapes[bucket]
        for row, (number, sample) in enumerate(zip(numbers, samples, strict=True)):
            found[number] = sample, _row(states, row), (shape.width, shape.height)
        on_progress(len(numbers))

    for number in range(start, start + count):
        sample = source.read(set_number, number)
        if sample is None:
            on_progress(1)
            continue
        bucket = nearest_bucket(options.shapes, sample.image.shape[1], sample.image.shape[0])
        waiting.setdefault(bucket, []).append((number, fit_sample(sample, options.shapes[bucket], options.stretches)))
        if len(waiting[bucket]) == options.batch_size:
            flush(bucket)
    for bucket in list(waiting):
        flush(bucket)
    for number in sorted(found):
        yield found[number]


def _row(states: CachedStates, row: int) -> CachedStates:
    def of(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[row : row + 1]

    text = states.text
    if text is not None:
        tensors = (text.tokens, text.mask, text.global_state, text.local_states, text.local_mask)
        text = TextStates(*(x[row : row + 1] for x in tensors))  # without the ids, which no cached state needs
    return CachedStates(
        states.image_mean[row : row + 1],
        of(states.image_deviation),
        states.glyph_mean[row : row + 1],
        of(states.glyph_deviation),
        text,
        of(states.v),
    )


def open_cache(directory: str, expected: Fingerprint, partly: bool = False) -> ShardSets:
    """The companion shards of a cache. Raises UserError for one with another fingerprint than expected.

    `partly`: compares the expected part of the fingerprint alone, where the rest is not known yet.
    """
    manifest = checked_path(directory, "data.cache:") / MANIFEST
    if not manifest.is_file():
        raise UserError(f"data.cache: there is no finished cache at {directory}; make one with tools/cache.py.")
    try:
        stored = read_object(manifest)["about"]["fingerprint"]
        asked = expected if partly else {*stored, *expected}
        differing = [name for name in sorted(asked) if stored.get(name) != expected.get(name)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"data.cache: {manifest} is not the manifest of a cache; make one with tools/cache.py."
        ) from error
    if differing:
        raise UserError(
            f"data.cache: {directory} was made from something else ({', '.join(differing)} differ); make it again with"
            " tools/cache.py, or leave data.cache out."
        )
    try:
        index = index_shards(directory)
    except UserError as error:  # worded for shards of images
        reason = str(error).removeprefix("data.shards: ").partition(";")[0].rstrip(".")
        raise UserError(f"data.cache: {reason}; make the cache at {directory} again with tools/cache.py.") from error
    for shard in index.shards:
        if sizes_beside(shard) is None:
            raise UserError(f"data.cache: the file of sizes beside {shard.path} is missing; make the cache again.")
    return ShardSets((index,), cached=True, option="data.cache")
