"""Shards on their way to disk: written atomically, described by a manifest."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds

from vlad.data.decoding import encode_sample
from vlad.data.tars import picture_sizes, scan_tar
from vlad.records import Sample

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
SIZES_SUFFIX = ".sizes.json"  # beside each shard: what batches of one shape are planned from


def write_shards(
    samples: Iterable[Sample],
    directory: Path,
    samples_per_shard: int = 1000,
    extension: str = "png",
    first_shard: int = 0,
) -> list[dict[str, Any]]:
    """Writes samples to `directory/000000.tar`, ... in order; returns a manifest entry for each shard.

    A shard appears under its name only when it is whole. The same samples give the same bytes.
    """
    entries: list[dict[str, Any]] = []
    iterator = iter(samples)
    for number in itertools.count(first_shard):
        chunk = list(itertools.islice(iterator, samples_per_shard))
        if not chunk:
            return entries
        path = directory / f"{number:06d}.tar"
        temporary = path.with_suffix(".tar.partial")
        write_tar(temporary, ((sample.key, encode_sample(sample, extension)) for sample in chunk))
        entries.append(publish_shard(temporary, path, len(chunk)))
    return entries


def write_tar(path: Path, samples: Iterable[tuple[str, dict[str, bytes]]]) -> None:
    """Writes samples, each a key with its members by kind. Fixed owner and time: the same samples, the same bytes."""
    with path.open("wb") as stream:
        with wds.TarWriter(stream, user="", group="", mtime=0) as writer:
            for key, members in samples:
                writer.write({"__key__": key, **members})
        stream.flush()
        os.fsync(stream.fileno())


def publish_shard(
    temporary: Path, path: Path, samples: int, sizes: Sequence[tuple[int, int]] | None = None
) -> dict[str, Any]:
    """Gives a finished shard its name; returns its manifest entry.

    Beside it stand the sizes of its pictures (width, height): those given, else read from the shard.
    """
    if sizes is None:
        with temporary.open("rb") as stream:
            sizes = picture_sizes(stream, scan_tar(stream)).tolist()
    record = {"bytes": temporary.stat().st_size, "sizes": sizes}
    beside = path.with_suffix(SIZES_SUFFIX)
    beside.write_text(json.dumps(record, separators=(",", ":")), encoding="utf-8")
    temporary.replace(path)
    return shard_entry(path, samples)


def read_sizes(path: Path, shard_bytes: int | None) -> np.ndarray | None:
    """The picture sizes (N 2: width, height) that stand beside a shard of that length; None where none fit."""
    try:
        record = json.loads(path.with_suffix(SIZES_SUFFIX).read_text(encoding="utf-8"))
        if record["bytes"] != shard_bytes:
            return None
        return np.array(record["sizes"], dtype=np.int32).reshape(-1, 2)
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return None  # it only saves time: the shard itself says the same


def shard_entry(path: Path, samples: int) -> dict[str, Any]:
    """What the manifest says about a shard."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"name": path.name, "samples": samples, "bytes": path.stat().st_size, "sha256": digest}


def write_manifest(directory: Path, entries: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Publishes `manifest.json`: schema version, count, shards, and what made them.

    Its presence says that the set is whole.
    """
    record = {
        "schema_version": SCHEMA_VERSION,
        "samples": sum(entry["samples"] for entry in entries),
        "shards": sorted(entries, key=lambda entry: entry["name"]),
        "about": about,
    }
    temporary = directory / f"{MANIFEST}.partial"
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(directory / MANIFEST)
