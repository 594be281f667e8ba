"""Writing shards to a directory or an object store: atomically, with a manifest that describes them."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlad.data.decoding import encode_sample
from vlad.data.shards.tar_index import header_sizes, scan_tar
from vlad.data.storage import locations
from vlad.data.storage.locations import MANIFEST
from vlad.types import Sample
from vlad.utils.errors import UserError

SCHEMA_VERSION = 1
SIZES_SUFFIX = ".sizes.json"  # beside each shard: the image sizes, from which buckets are planned


@dataclass(frozen=True)
class Statistics:
    """Counts of what samples contain."""

    samples: int = 0
    width_pixels: int = 0
    height_pixels: int = 0
    lines: int = 0
    valid_lines: int = 0
    characters: int = 0  # of valid lines, without spaces
    scripts: dict[str, int] = field(default_factory=dict)  # valid lines by the script of most of their letters
    languages: dict[str, int] = field(default_factory=dict)  # lines by the language that their source names

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            self.samples + other.samples,
            self.width_pixels + other.width_pixels,
            self.height_pixels + other.height_pixels,
            self.lines + other.lines,
            self.valid_lines + other.valid_lines,
            self.characters + other.characters,
            dict(Counter(self.scripts) + Counter(other.scripts)),
            dict(Counter(self.languages) + Counter(other.languages)),
        )

    def to_json(self) -> dict[str, Any]:
        """The statistics of a manifest."""
        return {
            "mean_width_pixels": round(self.width_pixels / max(1, self.samples), 1),
            "mean_height_pixels": round(self.height_pixels / max(1, self.samples), 1),
            "lines": self.lines,
            "valid_lines": self.valid_lines,
            "characters": self.characters,
            "scripts": dict(sorted(self.scripts.items())),
            "languages": dict(sorted(self.languages.items())),
        }


def statistics_of(samples: Iterable[Sample]) -> Statistics:
    """The statistics of samples, summed."""
    total = Statistics()
    for sample in samples:
        height, width = sample.image.shape[:2]
        lines = sample.layout.lines
        valid = [line.text for line in lines if line.valid]
        total += Statistics(
            1,
            width,
            height,
            len(lines),
            len(valid),
            sum(len("".join(text.split())) for text in valid),
            dict(Counter(script_of(text) for text in valid)),
            dict(Counter(line.language for line in lines if line.language is not None)),
        )
    return total


def script_of(text: str) -> str:
    """The script of most letters, by their Unicode names: "latin", "cjk", "thai"; "none" without letters."""
    names = (unicodedata.name(character, "unknown") for character in text if character.isalpha())
    counted = Counter(name.partition(" ")[0].lower() for name in names)
    return counted.most_common(1)[0][0] if counted else "none"


def write_shards(
    samples: Iterable[Sample],
    directory: Path,
    samples_per_shard: int = 1000,
    extension: str = "png",
    first_shard: int = 0,
) -> list[dict[str, Any]]:
    """Writes samples to `directory/000000.tar`, ... in order; returns the manifest entry of each shard.

    A shard gets its name when it is finished. The same samples give the same bytes.
    """
    entries: list[dict[str, Any]] = []
    iterator = iter(samples)
    for number in itertools.count(first_shard):
        chunk = list(itertools.islice(iterator, samples_per_shard))
        if not chunk:
            return entries
        members = ((sample.key, encode_sample(sample, extension)) for sample in chunk)
        temporary = directory / f"{number:06d}.tar.partial"
        write_tar(members, temporary)
        entry = shard_entry(temporary, len(chunk), statistics_of(chunk), f"{number:06d}.tar")
        publish_shard(temporary, directory, entry["name"])
        entries.append(entry)
    return entries


def write_tar(samples: Iterable[tuple[str, Mapping[str, bytes]]], path: Path) -> int:
    """Writes keys and members to `path`, down to the disk; returns the number of samples. A failure leaves no file.

    Raises UserError when the disk is full.
    """
    import webdataset as wds  # it imports torch, which processes that only annotate images do without

    count = 0
    try:
        # A fixed owner and time, so that the bytes depend on the samples alone.
        with path.open("wb") as stream:
            with wds.TarWriter(stream, user="", group="", mtime=0) as writer:
                for key, members in samples:
                    writer.write({"__key__": key, **members})
                    count += 1
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException as error:
        path.unlink(missing_ok=True)
        raise full_disk(path.parent, error) or error from None
    return count


def publish_shard(
    temporary: Path, target: Path | str, name: str, sizes: Sequence[tuple[int, int]] | None = None
) -> None:
    """Gives a finished shard its name in a directory or at a URL, with the file of its image sizes beside it.

    `sizes` are (width, height) per image; None: from the image headers in the shard.
    """
    if sizes is None:
        with temporary.open("rb") as stream:
            sizes = header_sizes(stream, scan_tar(stream)).tolist()
    record = {"bytes": temporary.stat().st_size, "sizes": sizes}
    beside = str(Path(name).with_suffix(SIZES_SUFFIX))
    write_text_file(json.dumps(record, separators=(",", ":")), target, beside, temporary.parent)
    _publish(temporary, target, name)


def read_sizes(text: str, shard_bytes: int | None, samples: int) -> np.ndarray | None:
    """The image sizes (N 2: width, height) in a file of sizes; None where it belongs to another shard."""
    try:
        record = json.loads(text)
        if record["bytes"] != shard_bytes:
            return None
        sizes = np.array(record["sizes"], dtype=np.int32)
        return sizes if sizes.shape == (samples, 2) and sizes.min() > 0 else None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None  # the file only saves time: the shard's headers have the same sizes


def shard_entry(
    path: Path, samples: int, statistics: Statistics | None = None, name: str | None = None
) -> dict[str, Any]:
    """The manifest's entry of a shard; `name` is the one that it will have (None: the file's)."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    entry = {"name": name or path.name, "samples": samples, "bytes": path.stat().st_size, "sha256": digest}
    if statistics is not None:
        entry["statistics"] = statistics.to_json()
    return entry


def write_manifest(
    target: Path | str,
    entries: list[dict[str, Any]],
    about: dict[str, Any],
    statistics: Statistics | None = None,
    workplace: Path | None = None,
) -> None:
    """Publishes `manifest.json`: schema version, number of samples, shards, statistics, and how they were made.

    A set with a manifest is complete. `workplace` is where it is written first (None: `target`, a directory).
    """
    record = {
        "schema_version": SCHEMA_VERSION,
        "samples": sum(entry["samples"] for entry in entries),
        "shards": sorted(entries, key=lambda entry: entry["name"]),
        **({"statistics": statistics.to_json()} if statistics is not None else {}),
        "about": about,
    }
    write_text_file(json.dumps(record, indent=1) + "\n", target, MANIFEST, workplace)


def write_text_file(text: str, target: Path | str, name: str, workplace: Path | None = None) -> None:
    """Publishes a text file atomically. Raises UserError when the disk is full."""
    temporary = (workplace or Path(target)) / f"{name}.partial"
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise full_disk(temporary.parent, error) or error from None
    _publish(temporary, target, name)


def full_disk(directory: Path, error: BaseException) -> UserError | None:
    """The UserError for a full disk, None for any other error."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return UserError(
        f"The disk of {directory} is full; make room and run the same command again: it resumes after the last"
        " finished shard."
    )


def published_names(target: Path | str, suffix: str) -> set[str]:
    """The names with a suffix in a directory or below a URL; none where there is no such place.

    Raises UserError for a directory that cannot be read.
    """
    if isinstance(target, str):
        return {url.rpartition("/")[2] for url in locations.list_files(target, suffix)}
    try:
        return {path.name for path in target.iterdir() if path.name.endswith(suffix)} if target.is_dir() else set()
    except OSError as error:
        raise UserError(f"The directory {target} cannot be read ({error.strerror}); name another.") from error


def _publish(temporary: Path, target: Path | str, name: str) -> None:
    if isinstance(target, str):
        locations.publish(temporary, f"{target.rstrip('/')}/{name}")
        temporary.unlink()
        return
    temporary.replace(target / name)
    if os.name == "posix":  # the new name reaches the disk too
        directory = os.open(target, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
