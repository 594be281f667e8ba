"""Says whether shards are sound: python tools/validate_shards.py SHARDS [--html DIR]

SHARDS is a directory, a glob, a brace pattern or a URL (http, https, s3, gs, ...). Nothing there is changed.
Exit code 0: sound, 1: there are findings, 2: a wrong call.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from vlad.utils.errors import UserError, run_command_line, told_of, writable_directory

if TYPE_CHECKING:
    from vlad.data.lint.findings import Finding
    from vlad.data.lint.shard_listing import ShardSet
    from vlad.data.lint.shard_scan import Inspection
    from vlad.data.lint.summary import Report, ValidationOptions

PAGE, FINDINGS, SHEET = "report.html", "findings.jsonl", "contact_sheet.png"


def main() -> int:
    with told_of("SHARDS"):
        return _main(_parse_arguments())


def _main(arguments: argparse.Namespace) -> int:
    # Imported late, so that --help and mistakes are answered at once.
    import warnings

    from tqdm import tqdm

    from vlad.data.lint.run import validate, validate_manifests
    from vlad.data.lint.shard_listing import list_set
    from vlad.data.lint.text_report import text_report
    from vlad.data.options import FetchOptions
    from vlad.data.storage.shard_cache import ShardCache

    warnings.filterwarnings("ignore", module="PIL")  # of large images: they are found
    options = _options(arguments)
    cache = ShardCache(FetchOptions(arguments.cache))
    shard_set = list_set(arguments.shards, cache.options)
    with ExitStack() as stack:
        stream = stack.enter_context(_findings_file(arguments.html, shard_set)) if arguments.html else None

        def on_finding(finding: Finding) -> None:
            if stream is not None:
                stream.write(json.dumps(asdict(finding)) + "\n")

        if arguments.quick:
            report = validate_manifests(shard_set, options, on_finding)
        else:
            listed = shard_set.listed_samples
            total, unit = (len(shard_set.shards), "shard") if listed is None else (listed, "sample")
            with tqdm(total=total, desc="validating", unit=unit) as bar:

                def on_progress(inspection: Inspection) -> None:
                    bar.update(inspection.ends_shard if unit == "shard" else inspection.counts.samples)

                report = validate(shard_set, options, cache, on_finding, on_progress)
    print(text_report(report))
    if arguments.html:
        _write_page(report, arguments.html)
        print(f"\nAll findings: {arguments.html / FINDINGS}; page: {arguments.html / PAGE}")
    if report.interrupted:
        return 130
    return 0 if report.is_sound else 1


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Says whether shards are sound, and what they hold. Changes nothing.",
        epilog="Exit code 0: sound, 1: there are findings, 2: a wrong call.",
    )
    parser.add_argument("shards", help="a directory, a glob, a brace pattern or a URL (http, https, s3, gs, ...)")
    parser.add_argument("--quick", action="store_true", help="read the manifests alone")
    parser.add_argument(
        "--html", type=Path, metavar="DIR", help=f"write {PAGE} (with images), {SHEET} and {FINDINGS} there"
    )
    parser.add_argument(
        "--resolutions",
        type=int,
        nargs="+",
        default=[512],
        metavar="N",
        help="to count training shapes at; default 512",
    )
    parser.add_argument("--max-aspect", type=float, default=2.0, metavar="R", help="of training shapes, default 2")
    parser.add_argument("--bucket-step", type=int, default=64, metavar="N", help="of their sides in pixels, default 64")
    parser.add_argument("--ranks", type=int, metavar="N", help="judge a launch of so many ranks")
    parser.add_argument("--batch-size", type=int, metavar="N", help="and so many samples a batch")
    parser.add_argument(
        "--images", "--pictures", type=int, default=25, metavar="N", help="sound samples on the page, default 25"
    )
    parser.add_argument(
        "--cache", metavar="DIR", help="where shards from elsewhere are kept; default ~/.cache/vlad/shards"
    )
    return parser.parse_args()


def _options(arguments: argparse.Namespace) -> ValidationOptions:
    from vlad.data.lint.summary import Launch, ValidationOptions

    asked = {"ranks": arguments.ranks, "batch_size": arguments.batch_size}
    given = {name: value for name, value in asked.items() if value is not None}
    if arguments.images < 0:
        raise UserError(f"--images must be at least 0, not {arguments.images}.")
    options = ValidationOptions(
        resolutions=tuple(arguments.resolutions),
        max_aspect=arguments.max_aspect,
        bucket_step_pixels=arguments.bucket_step,
        launch=Launch(**given) if given else None,
        # Images are drawn for the page alone.
        images=arguments.images if arguments.html else 0,
        images_a_kind=6 if arguments.html else 0,
    )
    # A resolution that fits no step is told before anything is read.
    assert options.buckets
    return options


def _findings_file(directory: Path, shard_set: ShardSet) -> TextIO:
    from vlad.data.storage.urls import is_url

    source = {Path(shard.path).parent.resolve() for shard in shard_set.shards if not is_url(shard.path)}
    if directory.resolve() in source:
        raise UserError(f"--html {directory} is where the shards are, and nothing is written there; name another.")
    return (writable_directory(directory, "the report") / FINDINGS).open("w", encoding="utf-8")


def _write_page(report: Report, directory: Path) -> None:
    from vlad.data.lint.contact_sheets import PageFinding, PageTable, contact_sheet, write_page
    from vlad.data.lint.findings import KINDS
    from vlad.data.lint.text_report import place_of, summary_rows, tables

    note = "Interrupted: this is about the part that was read." if report.interrupted else ""
    groups = report.cards()
    write_page(
        directory / PAGE,
        f"Shards at {report.shard_set.pattern}",
        note,
        summary_rows(report),
        [PageTable(table.heading, table.note, table.rows) for table in tables(report)],
        [
            PageFinding(
                description,
                report.found[kind],
                tuple((place_of(finding).rstrip(": "), finding.detail) for finding in report.examples[kind]),
            )
            for kind, description in KINDS.items()
            if report.found[kind]
        ],
        groups,
    )
    cards = [card for _, group in groups for card in group]
    if cards:
        contact_sheet(cards).save(directory / SHEET, optimize=True)


if __name__ == "__main__":
    run_command_line(main)
