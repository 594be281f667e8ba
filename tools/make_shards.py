"""Makes shards from what you have: python tools/make_shards.py SOURCE --out SHARDS

SOURCE is a folder of images, or one of the formats that --help lists. Interrupted, the same command goes on after
the last whole shard, and the shards come out the same.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.data.storage.locations import errors_naming
from vlad.utils.command_line import run_command_line
from vlad.utils.errors import UserError, counted
from vlad.utils.locks import directory_lock
from vlad.utils.paths import checked_path, writable_directory

if TYPE_CHECKING:
    from vlad.data.importers.annotate import ReadText
    from vlad.data.importers.make_shards import Captioner, Recipe, ShardRecord
    from vlad.data.importers.sources import Place, Skipped, Source

# What a pixel takes in a shard, at most, as measured on photographs with text.
BYTES_A_PIXEL = {"jpg": 0.6, "png": 2.4}
# Says what is being made, and what is finished, while the manifest is still missing.
JOURNAL = "begun.jsonl"
SKIPPED = "skipped.jsonl"
SHARD_NAME = re.compile(r"\d{6}\.(tar|sizes\.json)(\.partial)?")
NAMED_SKIPS = 20  # in the closing summary; all of them stand in SKIPPED
PROBED_PLACES = 20
MOST_WORKERS = 512


def main() -> int:
    with errors_naming("--out"):  # the only place that is read and written like the shards of a run
        return _main(_parse_arguments())


def _main(arguments: argparse.Namespace) -> int:
    # Imported late, here and below, so that --help and mistakes are answered at once.
    from vlad.data.importers.annotate import AnnotateOptions
    from vlad.data.importers.detect_format import open_source
    from vlad.data.importers.make_shards import Recipe

    options = AnnotateOptions(
        max_side_pixels=arguments.max_side_pixels,
        max_strings=arguments.max_strings,
        tight_lines=not arguments.loose_lines,
        quote_text=arguments.quote_text,
        image_format=arguments.image_format,
    )
    if arguments.workers is not None and not 1 <= arguments.workers <= MOST_WORKERS:
        raise UserError(
            f"--workers must be at least 1 and at most {MOST_WORKERS}, not {arguments.workers}: each is a process; take"
            " about one a core."
        )
    source = open_source(arguments.source, arguments.format, arguments.images, arguments.caption_field)
    build_captioner = None
    if arguments.captioner is not None:
        build_captioner = functools.partial(
            _build_captioner, arguments.captioner, arguments.captioner_revision, arguments.device
        )
    recipe = Recipe(
        source,
        options,
        functools.partial(_build_reader, arguments.ocr),
        build_captioner,
        arguments.samples_per_shard,
        arguments.caption_batch,
    )
    out = _output(arguments.out, arguments.overwrite)
    _refuse_source(arguments.source, out.target)
    out.refuse_others(arguments)
    writable_directory(out.workplace, "a set of shards")
    with directory_lock(out.workplace, "a set of shards"):
        out.refuse_others(arguments)  # another process may have finished them meanwhile
        return _make(arguments, recipe, out)


def _make(arguments: argparse.Namespace, recipe: Recipe, out: Output) -> int:
    from vlad.data.importers.make_shards import Journal

    source, options = recipe.source, recipe.options
    count, pixels = _probe(source, options.max_side_pixels, arguments.caption_field)
    here_bytes = sum(path.stat().st_size for path in out.workplace.glob("*.tar"))
    # At a URL one shard at a time stands here.
    needed = BYTES_A_PIXEL[options.image_format] * pixels - here_bytes
    if isinstance(out.target, Path):
        writable_directory(out.workplace, "a set of shards", int(needed))
    if arguments.engine == "ray":
        from vlad.data.importers.on_ray import start_ray

        start_ray()

    from vlad.metrics.ocr import build_ocr_engine

    about = {
        "made_by": "tools/make_shards.py",
        "source": Path(arguments.source).resolve().name if Path(arguments.source).exists() else arguments.source,
        "format": source.format,
        "engine": build_ocr_engine(arguments.ocr).name,
        "captioner": arguments.captioner,
        "captioner_revision": arguments.captioner_revision,
        "image_format": options.image_format,
        "samples_per_shard": recipe.samples_per_shard,
        "max_strings": options.max_strings,
        "max_side_pixels": options.max_side_pixels,
        "quote_text": options.quote_text,
        "tight_lines": options.tight_lines,
        "caption_field": arguments.caption_field,
    }
    if arguments.overwrite:
        out.clear()
    journal = Journal(out.workplace / JOURNAL)
    done = out.still_there(journal.take_up(about))
    out.forget_others(done)
    records = list(done.values())
    if done:
        places = sum(record.places for record in records)
        print(
            f"{arguments.out} was begun: goes on after {counted(places, 'image')} in {counted(len(done), 'shard')}.",
            flush=True,
        )
    for record in _made(recipe, out, done, arguments, count):
        journal.add(record)
        records.append(record)
    return _finish(arguments, out, sorted(records, key=lambda record: record.number), about)


def _parse_arguments() -> argparse.Namespace:
    from vlad.data.importers.detect_format import FORMATS

    parser = argparse.ArgumentParser(
        description="Makes shards from images and what is known about them.",
        epilog="Formats: "
        + "; ".join(f"{name} ({what})" for name, what in FORMATS.items())
        + ". Where a source has no lines of text, an OCR engine reads them. A caption stands in NAME.txt beside the"
        " image NAME.jpg, or in the source, or is written by --captioner, or is made of the text that was read."
        " Interrupted, the same command goes on after the last whole shard.",
    )
    parser.add_argument("source", metavar="SOURCE", help="a folder, a file, tar files, or a data set's name on the hub")
    parser.add_argument("--out", required=True, metavar="DIRECTORY_OR_URL", help="where the shards go")
    parser.add_argument("--format", metavar="NAME", help="of the source, where it is not found out: see below")
    parser.add_argument(
        "--images", "--pictures", type=Path, metavar="FOLDER", help="where the images of an annotation file lie"
    )
    parser.add_argument("--caption-field", metavar="NAME", help="the field or column with the caption")
    parser.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="default 1000")
    parser.add_argument(
        "--image-format", "--picture-format", choices=("jpg", "png"), default="jpg", help="in the shards, default jpg"
    )
    parser.add_argument("--max-side-pixels", type=int, default=1024, metavar="N", help="of an image, default 1024")
    parser.add_argument("--max-strings", type=int, default=3, metavar="N", help="strings in a made caption, default 3")
    parser.add_argument(
        "--loose-lines", action="store_true", help="keep the engine's regions, which have room around the letters"
    )
    parser.add_argument("--quote-text", action="store_true", help="quote the text in the source's own captions too")
    parser.add_argument("--ocr", default="rapidocr", metavar="NAME", help="OCR engine: rapidocr (default) or tesseract")
    parser.add_argument("--captioner", metavar="MODEL", help="a folder or hub id of an image-text-to-text model")
    parser.add_argument("--captioner-revision", metavar="NAME", help="of the model on the hub")
    parser.add_argument("--caption-batch", type=int, default=8, metavar="N", help="images at a time, default 8")
    parser.add_argument("--device", default="auto", help="of the captioner: auto (default), cpu, cuda, ...")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="one machine, or Ray's cluster")
    parser.add_argument("--workers", type=int, metavar="N", help="processes, default one a core")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on with shards that were begun at --out")
    existing.add_argument("--overwrite", action="store_true", help="replace the shards that --out holds")
    return parser.parse_args()


# What a process of a pool or a cluster calls by name.


def _build_reader(name: str) -> ReadText:
    from vlad.metrics.ocr import build_ocr_engine

    # What the engine is unsure of comes too: there the importer marks the line as not legible.
    return build_ocr_engine(name, min_confidence=0.0).read


def _build_captioner(path: str, revision: str | None, device: str) -> Captioner:
    from vlad.models.captioner import LVLMCaptioner

    return LVLMCaptioner(path, revision, device)


@dataclass(frozen=True)
class Output:
    """Where shards go. Those for a URL grow, and are remembered, in a directory of this machine's cache."""

    target: Path | str
    workplace: Path

    def still_there(self, records: dict[int, ShardRecord]) -> dict[int, ShardRecord]:
        """The records whose shards stand at the target."""
        from vlad.data.shards.writer import published_names

        names = published_names(self.target, ".tar")
        return {number: record for number, record in records.items() if self._has(record, names)}

    def _has(self, record: ShardRecord, names: set[str]) -> bool:
        if record.entry is None:  # there was nothing to write
            return True
        name = record.entry["name"]
        if isinstance(self.target, str):
            return name in names
        return name in names and (self.target / name).stat().st_size == record.entry["bytes"]

    def refuse_others(self, arguments: argparse.Namespace) -> None:
        """Raises UserError where shards stand that this tool has not begun, or has finished; or none to resume."""
        from vlad.data.shards.writer import MANIFEST, published_names

        names = published_names(self.target, "")
        begun = (self.workplace / JOURNAL).is_file()
        foreign = MANIFEST in names or (not begun and any(name.endswith(".tar") for name in names))
        if foreign and not arguments.overwrite:
            remedy = "" if isinstance(self.target, str) else ", or add --overwrite to replace them"
            raise UserError(f"{arguments.out} holds shards already; name another directory{remedy}.")
        if arguments.resume and not begun:
            raise UserError(f"{arguments.out} holds no shards that were begun; leave out --resume to begin them.")

    def forget_others(self, done: dict[int, ShardRecord]) -> None:
        """Removes what an interrupted run left besides its finished shards: they are made anew."""
        from vlad.data.shards.writer import SIZES_SUFFIX

        finished = {f"{number:06d}{kind}" for number in done for kind in (".tar", SIZES_SUFFIX)}
        for path in self.workplace.iterdir():
            if SHARD_NAME.fullmatch(path.name) and path.name not in finished:
                path.unlink()

    def clear(self) -> None:
        """Removes the shards that stand in the directory, the manifest first."""
        from vlad.data.shards.writer import MANIFEST

        for name in (MANIFEST, JOURNAL, SKIPPED):
            (self.workplace / name).unlink(missing_ok=True)
        for path in self.workplace.iterdir():
            if SHARD_NAME.fullmatch(path.name):
                path.unlink()


def _output(out: str, overwrite: bool) -> Output:
    """Raises UserError for a place that takes no shards."""
    from vlad.data.storage.object_stores import refuse_programs
    from vlad.data.storage.urls import HTTP_SCHEMES, is_url, local_path

    if not out.strip():
        raise UserError("--out is empty; name the directory or the URL for the shards.")
    out = local_path(out)
    refuse_programs(out)
    if not is_url(out):
        place = checked_path(out, "--out")
        return Output(place, place)
    if out.lower().startswith(tuple(f"{scheme}://" for scheme in HTTP_SCHEMES)):
        raise UserError(f"--out {out}: nothing is written over HTTP; name a directory, or a store such as s3://...")
    if overwrite:
        raise UserError(f"Nothing is deleted at a URL; empty {out} yourself, or name another place for the shards.")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(out.rstrip("/").encode()).hexdigest()[:16]
    return Output(out, cache / "vlad" / "make_shards" / digest)


def _refuse_source(source: str, target: Path | str) -> None:
    """Raises UserError where the shards would stand among what they are made of, and replace it in the end."""
    if isinstance(target, Path) and target.exists():
        from vlad.data.importers.detect_format import source_paths

        held = (path for path in source_paths(source) if path.exists())
        if any(target.samefile(path if path.is_dir() else path.parent) for path in held):
            raise UserError(f"--out {target} is where SOURCE stands; name another directory.")


def _probe(source: Source, max_side_pixels: int, caption_field: str | None) -> tuple[int, float]:
    """About how many images a source holds, and how many pixels they take, from the first ones.

    Raises UserError where none of the first entries is such as the source's format has them, has its image, or has
    a caption where the user says that it stands.
    """
    from vlad.data.importers.annotate import header_pixels
    from vlad.data.importers.sources import UnusableEntry

    pixels, probed, captions, share, reasons = 0, 0, 0, None, []
    for place in itertools.islice(source.places(), PROBED_PLACES):
        probed += 1
        share = place.share
        try:
            entry = source.read(place)
            captions += entry.caption is not None
            pixels += header_pixels(entry.image, max_side_pixels)
        except UnusableEntry as error:
            reasons.append(f"{place.name}: {error}")
    if not probed:
        raise UserError(f"{source.path} is empty: it holds no images.")
    # A folder names its images itself; an annotation file may be of another kind, or without its images.
    if len(reasons) == probed and source.format != "folder":
        raise UserError(
            f"{_unusable(probed, f'of {source.path}', 'first ')} (format {source.format}; the first:"
            f" {reasons[0]}); mend it, name the images' folder with --images, or another format with --format."
        )
    if caption_field is not None and not captions and len(reasons) < probed:
        raise UserError(
            f"--caption-field {caption_field}: none of the first {counted(probed, 'image')} of {source.path} has text"
            " in such a field; name another, or leave it out."
        )
    count = source.count or round(probed / share if share else probed)
    return count, pixels / probed * count


def _unusable(count: int, place: str, which: str = "") -> str:
    if count == 1:
        return f"The only image {place} cannot be used"
    return f"Not one of the {which}{count} images {place} can be used"


def _made(
    recipe: Recipe, out: Output, done: dict[int, ShardRecord], arguments: argparse.Namespace, count: int
) -> Iterator[ShardRecord]:
    """The shards as they are finished, under a bar."""
    from tqdm import tqdm

    from vlad.data.importers.make_shards import LEAST_IMAGES_A_PROCESS, make_shards_locally
    from vlad.utils.parallel import available_cores

    before = sum(record.places for record in done.values())
    remaining = max(0, count - before)
    with tqdm(total=remaining, desc="reading images", unit="image") as bar:
        if arguments.engine == "ray":
            from vlad.data.importers.on_ray import make_shards_on_ray

            for record in make_shards_on_ray(recipe, out.target, done, arguments.workers):
                bar.update(record.places)
                yield record
            return

        def on_image(place: Place) -> None:
            if place.share:
                bar.total = max(bar.n + 1, round((place.number + 1) / place.share) - before)
            bar.update()

        workers = arguments.workers or max(1, min(available_cores(), remaining // LEAST_IMAGES_A_PROCESS))
        yield from make_shards_locally(recipe, out.target, out.workplace, done, workers, on_image)


def _finish(arguments: argparse.Namespace, out: Output, records: list[ShardRecord], about: dict[str, Any]) -> int:
    """Prints the summary and publishes the manifest."""
    from vlad.data.shards.writer import Statistics, write_manifest, write_text_file

    entries = [record.entry for record in records if record.entry is not None]
    statistics = sum((record.statistics for record in records), Statistics())
    skipped = [skip for record in records for skip in record.skipped]
    print(_summary(arguments.out, len(entries), statistics, skipped))
    if entries:
        if skipped:
            lines = (json.dumps({"name": skip.name, "reason": skip.reason}) for skip in skipped)
            write_text_file("\n".join(lines) + "\n", out.target, SKIPPED, out.workplace)
        write_manifest(out.target, entries, about, statistics, out.workplace)
    (out.workplace / JOURNAL).unlink()
    if isinstance(out.target, str):
        shutil.rmtree(out.workplace)  # ours alone, in the cache
    if not entries:
        raise UserError(f"{_unusable(len(skipped), f'in {arguments.source}')}; what is wrong stands above.")
    return 0


def _summary(out: str, shards: int, statistics: Any, skipped: list[Skipped]) -> str:
    illegible = statistics.lines - statistics.valid_lines
    lines = [
        f"images taken: {statistics.samples} (shards: {shards}, at {out})",
        f"lines of text: {statistics.lines}, of them marked as not legible: {illegible}",
        f"images skipped: {len(skipped)}",
    ]
    lines += [f"  {count} x {kind}" for kind, count in Counter(skip.kind for skip in skipped).most_common()]
    if skipped:
        lines.append("by name:" if len(skipped) <= NAMED_SKIPS else f"the first by name (all are in {SKIPPED}):")
    lines += [f"  {_printable(f'{skip.name}: {skip.reason}')}" for skip in skipped[:NAMED_SKIPS]]
    return "\n".join(lines)


def _printable(text: str) -> str:
    """The text with what is no letter or mark escaped: a file's name may hold line ends, and bytes that are no text."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


if __name__ == "__main__":
    run_command_line(main)
