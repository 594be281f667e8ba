"""Making shards of a source of images: a folder, one of the known formats, or a dataset of the Hub.

    open_source -> probe the first images -> resume the journal -> build shards (here, or `on_ray`) -> manifest

An interrupted run resumes after its last finished shard, and ends with the same bytes.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlad.data.importers.annotate import header_pixels
from vlad.data.importers.detect_format import open_source, source_paths
from vlad.data.importers.journal import Journal, ShardRecord
from vlad.data.importers.shard_builder import (
    MIN_IMAGES_PER_PROCESS,
    Captioner,
    ShardSpec,
    make_shards_locally,
)
from vlad.data.importers.sources import ImageRef, Skipped, Source, UnusableEntry
from vlad.data.options import MakeShardsOptions
from vlad.data.shards.writer import (
    MANIFEST,
    SIZES_SUFFIX,
    Statistics,
    published_names,
    write_manifest,
    write_text_file,
)
from vlad.data.storage.locations import errors_naming
from vlad.data.storage.object_stores import check_location
from vlad.data.storage.urls import HTTP_SCHEMES, is_url, local_path
from vlad.types import OCREngine
from vlad.utils.errors import UserError, counted
from vlad.utils.foreign_text import printable_line
from vlad.utils.locks import directory_lock
from vlad.utils.parallel import available_cores
from vlad.utils.passed_over import PassedOver
from vlad.utils.paths import checked_path, writable_directory
from vlad.utils.secrets import redacted

# Upper bounds of the bytes that a pixel takes in a shard, measured on photographs with text.
BYTES_PER_PIXEL = {"jpg": 0.6, "png": 2.4}
JOURNAL = "begun.jsonl"  # while the manifest is still missing
SKIPPED = "skipped.jsonl"
SHARD_NAME = re.compile(r"\d{6}\.(tar|sizes\.json)(\.partial)?")
NAMED_SKIPS = 20  # in the closing summary; SKIPPED lists them all
PROBED_IMAGES = 20


def make_shards(options: MakeShardsOptions, build_engine: Callable[[], OCREngine]) -> None:
    """Makes shards of a source, and prints a summary of what they hold and what was skipped.

    `build_engine` makes the OCR engine, in each process anew: it has to be picklable. Raises UserError where the
    source, the output or an option cannot be used.
    """
    with errors_naming("--out"):  # the only place that is read and written like the shards of a run
        source = open_source(options.source, options.format, options.images, options.caption_field)
        build_captioner = None
        if options.captioner is not None:
            build_captioner = functools.partial(
                _build_captioner, options.captioner, options.captioner_revision, options.device
            )
        spec = ShardSpec(
            source,
            options.annotate,
            build_engine,
            build_captioner,
            options.samples_per_shard,
            options.caption_batch,
        )
        output = _open_output(options.out, options.overwrite)
        _refuse_source_as_output(options.source, output.target)
        output.refuse_other_shards(options)
        writable_directory(output.workplace, "a set of shards")
        with directory_lock(output.workplace, "a set of shards"):
            output.refuse_other_shards(options)  # another process may have finished them meanwhile
            _make(options, spec, output)


def _make(options: MakeShardsOptions, spec: ShardSpec, output: ShardOutput) -> None:
    count, pixels = _probe(spec.source, options.annotate.max_side_pixels, options.caption_field)
    if isinstance(output.target, Path):  # a URL's shards are here one at a time
        existing_bytes = sum(path.stat().st_size for path in output.workplace.glob("*.tar"))
        needed_bytes = BYTES_PER_PIXEL[options.annotate.image_format] * pixels - existing_bytes
        writable_directory(output.workplace, "a set of shards", int(needed_bytes))
    if options.on_ray:
        from vlad.data.importers.on_ray import start_ray

        start_ray()

    about = {
        "made_by": "tools/make_shards.py",
        "source": Path(options.source).resolve().name if Path(options.source).exists() else redacted(options.source),
        "format": spec.source.format,
        "engine": spec.build_engine().name,
        "captioner": options.captioner,
        "captioner_revision": options.captioner_revision,
        "image_format": options.annotate.image_format,
        "samples_per_shard": spec.samples_per_shard,
        "max_strings": options.annotate.max_strings,
        "max_side_pixels": options.annotate.max_side_pixels,
        "quote_text": options.annotate.quote_text,
        "tight_lines": options.annotate.tight_lines,
        "caption_field": options.caption_field,
    }
    if options.overwrite:
        output.clear()
    journal = Journal(output.workplace / JOURNAL)
    done = output.still_there(journal.resume(about))
    output.remove_unfinished(done)
    records = list(done.values())
    if done:
        images = sum(record.places for record in records)
        print(
            f"{options.out} was begun: resuming after {counted(images, 'image')} in {counted(len(done), 'shard')}.",
            flush=True,
        )
    for record in _build_shards(options, spec, output, done, count):
        journal.add(record)
        records.append(record)
    _finish(options, output, sorted(records, key=lambda record: record.number), about, spec.source.passed_over)


def _build_captioner(path: str, revision: str | None, device: str) -> Captioner:
    from vlad.models.captioner import LVLMCaptioner  # it imports transformers

    return LVLMCaptioner(path, revision, device)


def _probe(source: Source, max_side_pixels: int, caption_field: str | None) -> tuple[int, float]:
    """Estimates how many images a source holds, and how many pixels they take, from the first ones.

    Raises UserError where none of the first images can be used, or none has the caption field that the user names.
    """
    pixels, probed, captions, share, reasons = 0, 0, 0, None, []
    for ref in itertools.islice(source.refs(), PROBED_IMAGES):
        probed += 1
        share = ref.share
        try:
            entry = source.read(ref)
            captions += entry.caption is not None
            pixels += header_pixels(entry.image, max_side_pixels)
        except UnusableEntry as error:
            reasons.append(f"{ref.name}: {error}")
    if not probed:
        raise UserError(f"{source.path} is empty: it holds no images.")
    # A folder names its images itself; an annotation file may be of another kind, or without its images.
    if len(reasons) == probed and source.format != "folder":
        raise UserError(
            f"{_none_usable(probed, f'of {source.path}', 'first ')} (format {source.format}; the first:"
            f" {reasons[0]}); fix it, name the images' folder with --images, or another format with --format."
        )
    if caption_field is not None and not captions and len(reasons) < probed:
        raise UserError(
            f"--caption-field {caption_field}: none of the first {counted(probed, 'image')} of {source.path} has text"
            " in such a field; name another, or leave it out."
        )
    count = source.count or round(probed / share if share else probed)
    return count, pixels / probed * count


def _none_usable(count: int, where: str, which: str = "") -> str:
    if count == 1:
        return f"The only image {where} cannot be used"
    return f"Not one of the {which}{count} images {where} can be used"


def _build_shards(
    options: MakeShardsOptions, spec: ShardSpec, output: ShardOutput, done: dict[int, ShardRecord], count: int
) -> Iterator[ShardRecord]:
    """The shards as they are finished, with a progress bar."""
    before = sum(record.places for record in done.values())
    remaining = max(0, count - before)
    with tqdm(total=remaining, desc="reading images", unit="image") as bar:
        if options.on_ray:
            from vlad.data.importers.on_ray import make_shards_on_ray

            for record in make_shards_on_ray(spec, output.target, done, options.workers):
                bar.update(record.places)
                yield record
            return

        def on_image(ref: ImageRef) -> None:
            if ref.share:
                bar.total = max(bar.n + 1, round((ref.number + 1) / ref.share) - before)
            bar.update()

        workers = options.workers or max(1, min(available_cores(), remaining // MIN_IMAGES_PER_PROCESS))
        yield from make_shards_locally(spec, output.target, output.workplace, done, workers, on_image)


def _finish(
    options: MakeShardsOptions,
    output: ShardOutput,
    records: list[ShardRecord],
    about: dict[str, Any],
    passed_over: PassedOver,
) -> None:
    """Prints the summary and publishes the manifest. Raises UserError where no image could be used."""
    entries = [record.entry for record in records if record.entry is not None]
    statistics = sum((record.statistics for record in records), Statistics())
    skipped = [skip for record in records for skip in record.skipped]
    print(_summary(options.out, len(entries), statistics, skipped))
    if passed_over.counts:
        print(f"passed over: {counted(passed_over.counts.total(), 'entry', 'entries')}")
        print("\n".join(passed_over.lines()))
    if entries:
        if skipped:
            lines = (json.dumps({"name": skip.name, "reason": skip.reason}) for skip in skipped)
            write_text_file("\n".join(lines) + "\n", output.target, SKIPPED, output.workplace)
        write_manifest(output.target, entries, about, statistics, output.workplace)
    (output.workplace / JOURNAL).unlink()
    if isinstance(output.target, str):
        shutil.rmtree(output.workplace)  # in the cache, for these shards alone
    if not entries:
        raise UserError(f"{_none_usable(len(skipped), f'in {options.source}')}; the reasons are listed above.")


def _summary(out: str, shards: int, statistics: Statistics, skipped: list[Skipped]) -> str:
    illegible = statistics.lines - statistics.valid_lines
    lines = [
        f"images taken: {statistics.samples} (shards: {shards}, at {out})",
        f"lines of text: {statistics.lines}, of them marked as not legible: {illegible}",
        f"images skipped: {len(skipped)}",
    ]
    lines += [f"  {count} x {kind}" for kind, count in Counter(skip.kind for skip in skipped).most_common()]
    if skipped:
        lines.append("by name:" if len(skipped) <= NAMED_SKIPS else f"the first by name (all are in {SKIPPED}):")
    lines += [f"  {printable_line(f'{skip.name}: {skip.reason}')}" for skip in skipped[:NAMED_SKIPS]]
    return "\n".join(lines)


# Where the shards go


@dataclass(frozen=True)
class ShardOutput:
    """A directory or URL for shards. Those for a URL grow in a directory of this machine's cache, the workplace."""

    target: Path | str
    workplace: Path

    def still_there(self, records: dict[int, ShardRecord]) -> dict[int, ShardRecord]:
        """The records whose shards exist at the target."""
        names = published_names(self.target, ".tar")
        return {number: record for number, record in records.items() if self._has(record, names)}

    def _has(self, record: ShardRecord, names: set[str]) -> bool:
        if record.entry is None:  # there was nothing to write
            return True
        name = record.entry["name"]
        if isinstance(self.target, str):
            return name in names
        return name in names and (self.target / name).stat().st_size == record.entry["bytes"]

    def refuse_other_shards(self, options: MakeShardsOptions) -> None:
        """Raises UserError for finished shards, for shards of another origin, and where there are none to resume."""
        names = published_names(self.target, "")
        begun = (self.workplace / JOURNAL).is_file()
        foreign = MANIFEST in names or (not begun and any(name.endswith(".tar") for name in names))
        if foreign and not options.overwrite:
            remedy = "" if isinstance(self.target, str) else ", or add --overwrite to replace them"
            raise UserError(f"{options.out} holds shards already; name another directory{remedy}.")
        if options.resume and not begun:
            raise UserError(f"{options.out} holds no shards that were begun; leave out --resume to begin them.")

    def remove_unfinished(self, done: dict[int, ShardRecord]) -> None:
        """Removes what an interrupted run left besides its finished shards."""
        finished = {f"{number:06d}{kind}" for number in done for kind in (".tar", SIZES_SUFFIX)}
        for path in self.workplace.iterdir():
            if SHARD_NAME.fullmatch(path.name) and path.name not in finished:
                path.unlink()

    def clear(self) -> None:
        """Removes the shards of the directory, the manifest first."""
        for name in (MANIFEST, JOURNAL, SKIPPED):
            (self.workplace / name).unlink(missing_ok=True)
        for path in self.workplace.iterdir():
            if SHARD_NAME.fullmatch(path.name):
                path.unlink()


def _open_output(out: str, overwrite: bool) -> ShardOutput:
    """Raises UserError for a location that takes no shards."""
    if not out.strip():
        raise UserError("--out is empty; name the directory or the URL for the shards.")
    out = local_path(out)
    check_location(out)
    if not is_url(out):
        directory = checked_path(out, "--out")
        return ShardOutput(directory, directory)
    if out.lower().startswith(tuple(f"{scheme}://" for scheme in HTTP_SCHEMES)):
        raise UserError(f"--out {out}: nothing is written over HTTP; name a directory, or a store such as s3://...")
    if overwrite:
        raise UserError(f"Nothing is deleted at a URL; empty {out} yourself, or name another place for the shards.")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(out.rstrip("/").encode()).hexdigest()[:16]
    return ShardOutput(out, cache / "vlad" / "make_shards" / digest)


def _refuse_source_as_output(source: str, target: Path | str) -> None:
    """Raises UserError where the shards would lie among the files that they are made of, and could replace them."""
    if isinstance(target, Path) and target.exists():
        held = (path for path in source_paths(source) if path.exists())
        if any(target.samefile(path if path.is_dir() else path.parent) for path in held):
            raise UserError(f"--out {target} is where SOURCE stands; name another directory.")
