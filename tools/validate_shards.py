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

from vlad.data.storage.locations import errors_naming
from vlad.utils.command_line import run_command_line
from vlad.utils.errors import UserError
from vlad.utils.paths import writable_directory

if TYPE_CHECKING:
    from vlad.data.lint.options import LintOptions
    from vlad.data.lint.sample_checks import Finding
    from vlad.data.lint.shard_checks import Inspection, ShardSet

PAGE, FINDINGS, SHEET = "report.html", "findings.jsonl", "contact_sheet.png"


def main() -> int:
    with errors_naming("SHARDS"):
        return _main(_parse_arguments())


def _main(arguments: argparse.Namespace) -> int:
    # Imported late, so that --help and mistakes are answered at once.
    import warnings

    from tqdm import tqdm

    from vlad.data.lint.contact_sheets import contact_sheet
    from vlad.data.lint.lint_report import text_report, write_lint_page
    from vlad.data.lint.linter import lint_manifests, lint_shards
    from vlad.data.lint.shard_checks import list_set
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
            report = lint_manifests(shard_set, options, on_finding)
        else:
            listed = shard_set.listed_samples
            total, unit = (len(shard_set.shards), "shard") if listed is None else (listed, "sample")
            with tqdm(total=total, desc="validating", unit=unit) as bar:

                def on_progress(inspection: Inspection) -> None:
                    bar.update(inspection.ends_shard if unit == "shard" else inspection.counts.samples)

                report = lint_shards(shard_set, options, cache, on_finding, on_progress)
    print(text_report(report))
    if arguments.html:
        write_lint_page(report, arguments.html / PAGE)
        if cards := [card for _, group in report.cards() for card in group]:
            contact_sheet(cards).save(arguments.html / SHEET, optimize=True)
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


def _options(arguments: argparse.Namespace) -> LintOptions:
    from vlad.data.lint.options import Launch, LintOptions

    asked = {"ranks": arguments.ranks, "batch_size": arguments.batch_size}
    given = {name: value for name, value in asked.items() if value is not None}
    if arguments.images < 0:
        raise UserError(f"--images must be at least 0, not {arguments.images}.")
    options = LintOptions(
        resolutions=tuple(arguments.resolutions),
        max_aspect=arguments.max_aspect,
        bucket_step_pixels=arguments.bucket_step,
        launch=Launch(**given) if given else None,
        # Images are drawn for the page alone.
        images=arguments.images if arguments.html else 0,
        images_per_kind=6 if arguments.html else 0,
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


if __name__ == "__main__":
    run_command_line(main)
