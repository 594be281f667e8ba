"""The whole set looked at, on all cores; or its manifests alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from vlad.data.lint.duplicate_keys import KeyBook
from vlad.data.lint.findings import Finding
from vlad.data.lint.shard_listing import ShardSet
from vlad.data.lint.shard_scan import Chunk, Inspection, inspect_chunk, scan_shard
from vlad.data.lint.summary import Report, ValidationOptions
from vlad.data.storage.locations import MANIFEST
from vlad.data.storage.shard_cache import ShardCache
from vlad.data.storage.urls import is_url, shown
from vlad.utils.errors import UserError
from vlad.utils.parallel import available_cores, map_in_order

CHUNK_SAMPLES = 64
FETCHED_AHEAD = 4  # shards on their way while others are looked at


def validate(
    shard_set: ShardSet,
    options: ValidationOptions,
    cache: ShardCache,
    on_finding: Callable[[Finding], None],
    on_progress: Callable[[Inspection], None],
) -> Report:
    """Looks at every sample, on all cores. `on_finding` gets every finding, the report a few of each kind.

    Ctrl-C ends it early, with the report of what was looked at.
    """
    buckets = options.buckets
    report = Report(shard_set, options)

    def note(finding: Finding) -> None:
        report.note(finding)
        on_finding(finding)

    for finding in shard_set.findings:
        note(finding)
    scratch = tempfile.TemporaryDirectory(prefix="vlad-validate-")
    with scratch as directory:
        keys = KeyBook(Path(directory))
        try:
            for inspection in map_in_order(
                partial(inspect_chunk, cache=cache, buckets=buckets), _chunks(shard_set, report, cache)
            ):
                report.counts.add(inspection.counts)
                report.shards += inspection.ends_shard
                for finding in inspection.findings:
                    note(finding)
                for card in inspection.cards:
                    report.keep(card)
                for key in inspection.keys:
                    keys.add(key, inspection.shard)
                on_progress(inspection)
        except KeyboardInterrupt:
            report.interrupted = True
        for key, numbers in keys.doubles():
            names = [shown(shard_set.shards[number].path) for number in numbers]
            places = ", ".join(dict.fromkeys(names[:5])) + (", ..." if len(names) > 5 else "")
            note(Finding("duplicate", names[1], key, f"{len(names)} times: {places}"))
    if not report.interrupted and report.too_small_for is not None:
        note(Finding("launch", None, None, report.too_small_for))
    return report


def _chunks(shard_set: ShardSet, report: Report, cache: ShardCache) -> Iterator[Chunk]:
    numbered = enumerate(shard_set.shards)
    for scanned in map_in_order(partial(scan_shard, cache=cache), numbered, min(FETCHED_AHEAD, available_cores())):
        entries = scanned.table.samples
        starts = range(0, max(1, len(entries)), CHUNK_SAMPLES)
        for start in starts:
            samples = entries[start : start + CHUNK_SAMPLES]
            yield Chunk(scanned, samples, start == 0, start == starts[-1], report.drawn_below, report.room)


def validate_manifests(
    shard_set: ShardSet, options: ValidationOptions, on_finding: Callable[[Finding], None]
) -> Report:
    """What the manifests alone say. Raises UserError where there is none."""
    if not shard_set.manifests:
        raise UserError(
            f"There is no {MANIFEST} beside the shards at {shard_set.pattern}; leave out --quick to read the"
            " shards themselves."
        )
    report = Report(shard_set, options, quick=True)
    findings = list(shard_set.findings)
    for shard in shard_set.shards:
        report.shards += 1
        said = shard.said
        if said is None:
            continue
        report.counts.samples += said.samples
        report.counts.bytes += said.bytes or 0
        try:
            size = said.bytes if is_url(shard.path) else Path(shard.path).stat().st_size
        except OSError as error:  # a link to what is not there
            findings.append(Finding("shard", shard.path, None, error.strerror or "it cannot be opened"))
            continue
        if size != said.bytes:
            findings.append(
                Finding("manifest", shard.path, None, f"it has {size} bytes, the manifest says {said.bytes}")
            )
        _add_statistics(report, said.statistics or {})
    if report.too_small_for is not None:
        findings.append(Finding("launch", None, None, report.too_small_for))
    for finding in findings:
        report.note(finding)
        on_finding(finding)
    return report


def _add_statistics(report: Report, statistics: dict[str, Any]) -> None:
    for name in ("lines", "valid_lines"):
        if isinstance(value := statistics.get(name), int):
            setattr(report.counts, name, getattr(report.counts, name) + value)
    scripts = statistics.get("scripts")
    if isinstance(scripts, dict):
        report.scripts.update({str(name): count for name, count in scripts.items() if isinstance(count, int)})
