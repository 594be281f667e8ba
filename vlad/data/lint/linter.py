"""Lints a set of shards: all samples, on all cores, or the manifests alone."""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from vlad.data.lint.lint_report import LintReport
from vlad.data.lint.options import LintOptions
from vlad.data.lint.sample_checks import Finding
from vlad.data.lint.shard_checks import Chunk, Inspection, ShardSet, inspect_chunk, scan_shard
from vlad.data.storage.locations import MANIFEST
from vlad.data.storage.shard_cache import ShardCache
from vlad.data.storage.urls import display_url, is_url
from vlad.utils.errors import UserError
from vlad.utils.parallel import available_cores, map_in_order

CHUNK_SAMPLES = 64
FETCHED_AHEAD = 4  # shards that are fetched while others are checked


def lint_shards(
    shard_set: ShardSet,
    options: LintOptions,
    cache: ShardCache,
    on_finding: Callable[[Finding], None],
    on_progress: Callable[[Inspection], None],
) -> LintReport:
    """Checks every sample, on all cores. `on_finding` gets every finding, the report keeps a few of each kind.

    Ctrl-C ends it early, with a report of what has been checked.
    """
    buckets = options.buckets
    report = LintReport(shard_set, options)

    def note(finding: Finding) -> None:
        report.note(finding)
        on_finding(finding)

    for finding in shard_set.findings:
        note(finding)
    scratch = tempfile.TemporaryDirectory(prefix="vlad-lint-")
    with scratch as directory:
        keys = KeyIndex(Path(directory))
        try:
            for inspection in map_in_order(
                partial(inspect_chunk, cache=cache, buckets=buckets), _chunks(shard_set, report, cache)
            ):
                report.counts.add(inspection.counts)
                report.shards += inspection.ends_shard
                for finding in inspection.findings:
                    note(finding)
                for card in inspection.cards:
                    report.keep_card(card)
                for key in inspection.keys:
                    keys.add(key, inspection.shard)
                on_progress(inspection)
        except KeyboardInterrupt:
            report.interrupted = True
        for key, numbers in keys.duplicates():
            names = [display_url(shard_set.shards[number].path) for number in numbers]
            places = ", ".join(dict.fromkeys(names[:5])) + (", ..." if len(names) > 5 else "")
            note(Finding("duplicate", names[1], key, f"{len(names)} times: {places}"))
    if not report.interrupted and report.too_small_for is not None:
        note(Finding("launch", None, None, report.too_small_for))
    return report


def _chunks(shard_set: ShardSet, report: LintReport, cache: ShardCache) -> Iterator[Chunk]:
    numbered = enumerate(shard_set.shards)
    for scanned in map_in_order(partial(scan_shard, cache=cache), numbered, min(FETCHED_AHEAD, available_cores())):
        entries = scanned.table.samples
        starts = range(0, max(1, len(entries)), CHUNK_SAMPLES)
        for start in starts:
            samples = entries[start : start + CHUNK_SAMPLES]
            yield Chunk(scanned, samples, start == 0, start == starts[-1], report.card_below, report.wanted_cards)


def lint_manifests(shard_set: ShardSet, options: LintOptions, on_finding: Callable[[Finding], None]) -> LintReport:
    """A report of the manifests alone. Raises UserError if there are none."""
    if not shard_set.manifests:
        raise UserError(
            f"There is no {MANIFEST} beside the shards at {shard_set.pattern}; leave out --quick to read the"
            " shards themselves."
        )
    report = LintReport(shard_set, options, quick=True)
    findings = list(shard_set.findings)
    for shard in shard_set.shards:
        report.shards += 1
        entry = shard.entry
        if entry is None:
            continue
        report.counts.samples += entry.samples
        report.counts.bytes += entry.bytes or 0
        try:
            size = entry.bytes if is_url(shard.path) else Path(shard.path).stat().st_size
        except OSError as error:  # a dangling link
            findings.append(Finding("shard", shard.path, None, error.strerror or "cannot be opened"))
            continue
        if size != entry.bytes:
            findings.append(
                Finding("manifest", shard.path, None, f"it has {size} bytes, the manifest says {entry.bytes}")
            )
        _add_statistics(report, entry.statistics or {})
    if report.too_small_for is not None:
        findings.append(Finding("launch", None, None, report.too_small_for))
    for finding in findings:
        report.note(finding)
        on_finding(finding)
    return report


def _add_statistics(report: LintReport, statistics: dict[str, Any]) -> None:
    for name in ("lines", "valid_lines"):
        if isinstance(value := statistics.get(name), int):
            setattr(report.counts, name, getattr(report.counts, name) + value)
    scripts = statistics.get("scripts")
    if isinstance(scripts, dict):
        report.scripts.update({str(name): count for name, count in scripts.items() if isinstance(count, int)})


class KeyIndex:
    """Finds duplicate keys in bounded memory: keys go to files by hash, of which only one is loaded at a time."""

    PARTS = 256

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = ExitStack()
        self._parts: dict[int, TextIO] = {}

    def add(self, key: str, shard: int) -> None:
        """Records that a shard has the key."""
        number = zlib.crc32(key.encode("utf-8", "surrogatepass")) % self.PARTS
        if number not in self._parts:
            self._parts[number] = self._files.enter_context(self._path(number).open("w", encoding="ascii"))
        self._parts[number].write(f"{shard} {json.dumps(key)}\n")

    def duplicates(self) -> Iterator[tuple[str, list[int]]]:
        """Keys that occur more than once, with their shards. Ends the adding of keys."""
        self._files.close()
        for number in sorted(self._parts):
            shards_by_key: dict[str, list[int]] = {}
            with self._path(number).open(encoding="ascii") as stream:
                for line in stream:
                    shard, _, key = line.partition(" ")
                    shards_by_key.setdefault(key, []).append(int(shard))
            yield from ((json.loads(key), shards) for key, shards in shards_by_key.items() if len(shards) > 1)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number}.keys"
