"""Verbs on shards: make, check, render."""

from __future__ import annotations

import argparse
import functools
import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from vlad.cli.common_options import add_config
from vlad.cli.verb import Verb, VerbGroup
from vlad.data.options import FORMATS, AnnotateOptions, MakeShardsOptions
from vlad.utils.command_line import OptionParser, whole
from vlad.utils.errors import UserError
from vlad.utils.paths import writable_directory

if TYPE_CHECKING:
    from vlad.data.lint.options import LintOptions
    from vlad.data.lint.sample_checks import Finding
    from vlad.data.lint.shard_checks import Inspection, ShardSet

PAGE, FINDINGS, SHEET = "report.html", "findings.jsonl", "contact_sheet.png"
PLATFORMS = ("local", "ray")


def _add_make_options(parser: OptionParser) -> None:
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
    parser.add_argument("--engine", metavar="NAME", help="OCR engine: rapidocr (default), tesseract or paddleocr")
    parser.add_argument("--ocr", help=argparse.SUPPRESS)  # --engine of version 0.1
    parser.add_argument("--captioner", metavar="MODEL", help="a folder or hub id of an image-text-to-text model")
    parser.add_argument("--captioner-revision", metavar="NAME", help="of the model on the hub")
    parser.add_argument("--caption-batch", type=int, default=8, metavar="N", help="images at a time, default 8")
    parser.add_argument("--device", default="auto", help="of the captioner: auto (default), cpu, cuda, ...")
    parser.add_argument("--run-on", choices=PLATFORMS, help="this machine (local, the default), or Ray's cluster")
    parser.add_argument("--workers", type=int, metavar="N", help="processes, default one a core")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="resume the shards that were begun at --out")
    existing.add_argument("--overwrite", action="store_true", help="replace the shards that --out holds")


def _make(arguments: argparse.Namespace) -> None:
    engine, run_on = arguments.engine, arguments.run_on
    if engine in PLATFORMS:  # --engine of version 0.1, whose --ocr named the OCR engine
        engine, run_on = None, run_on or engine
    annotate = AnnotateOptions(
        max_side_pixels=arguments.max_side_pixels,
        max_strings=arguments.max_strings,
        tight_lines=not arguments.loose_lines,
        quote_text=arguments.quote_text,
        image_format=arguments.image_format,
    )
    options = MakeShardsOptions(
        source=arguments.source,
        out=arguments.out,
        format=arguments.format,
        images=arguments.images,
        caption_field=arguments.caption_field,
        annotate=annotate,
        samples_per_shard=arguments.samples_per_shard,
        captioner=arguments.captioner,
        captioner_revision=arguments.captioner_revision,
        caption_batch=arguments.caption_batch,
        device=arguments.device,
        on_ray=run_on == "ray",
        workers=arguments.workers,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
    )
    from vlad.data.importers.make_shards import make_shards
    from vlad.metrics.ocr import build_ocr_engine

    # Lines that the engine is unsure of are read too: the importer marks them as not legible.
    name = engine or arguments.ocr or "rapidocr"
    make_shards(options, functools.partial(build_ocr_engine, name, min_confidence=0.0))


MAKE = Verb(
    "make",
    "Makes shards from images and what is known about them.",
    _add_make_options,
    _make,
    "vlad shards make FOLDER --out data/posters",
    "Formats: "
    + "; ".join(f"{name} ({what})" for name, what in FORMATS.items())
    + ". Where a source has no lines of text, an OCR engine reads them. Captions come from NAME.txt beside the"
    " image NAME.jpg, from the source, from --captioner, or are composed of the text that was read."
    " Interrupted, the same command resumes after the last finished shard.",
)


def _add_check_options(parser: OptionParser) -> None:
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
        *("--examples", "--images", "--pictures"),
        type=whole(),
        default=25,
        metavar="N",
        help="sound samples on the page, default 25",
    )
    parser.add_argument(
        *("--shard-cache", "--cache"),
        metavar="DIR",
        help="where shards from elsewhere are kept; default ~/.cache/vlad/shards",
    )


def _check(arguments: argparse.Namespace) -> int:
    from vlad.data.storage.locations import errors_naming

    with errors_naming("SHARDS"):
        return _lint(arguments)


def _lint(arguments: argparse.Namespace) -> int:
    import warnings

    from tqdm import tqdm

    from vlad.data.lint.contact_sheets import contact_sheet
    from vlad.data.lint.lint_report import text_report, write_lint_page
    from vlad.data.lint.linter import lint_manifests, lint_shards
    from vlad.data.lint.shard_checks import list_set
    from vlad.data.options import FetchOptions
    from vlad.data.storage.shard_cache import ShardCache

    warnings.filterwarnings("ignore", module="PIL")  # of large images: they are found
    options = _lint_options(arguments)
    cache = ShardCache(FetchOptions(arguments.shard_cache))
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


def _lint_options(arguments: argparse.Namespace) -> LintOptions:
    from vlad.data.lint.options import Launch, LintOptions

    asked = {"ranks": arguments.ranks, "batch_size": arguments.batch_size}
    given = {name: value for name, value in asked.items() if value is not None}
    options = LintOptions(
        resolutions=tuple(arguments.resolutions),
        max_aspect=arguments.max_aspect,
        bucket_step_pixels=arguments.bucket_step,
        launch=Launch(**given) if given else None,
        # Only the page shows images.
        images=arguments.examples if arguments.html else 0,
        images_per_kind=6 if arguments.html else 0,
    )
    # An error in the resolutions is reported before anything is read.
    assert options.buckets
    return options


def _findings_file(directory: Path, shard_set: ShardSet) -> TextIO:
    from vlad.data.storage.urls import is_url

    source = {Path(shard.path).parent.resolve() for shard in shard_set.shards if not is_url(shard.path)}
    if directory.resolve() in source:
        raise UserError(f"--html {directory} is where the shards are, and nothing is written there; name another.")
    return (writable_directory(directory, "the report") / FINDINGS).open("w", encoding="utf-8")


CHECK = Verb(
    "check",
    "Checks every sample of shards, and reports what they hold. Changes nothing.",
    _add_check_options,
    _check,
    "vlad shards check data/tiny --html report",
    "Exit code 0: sound, 1: there are findings, 2: a wrong call.",
)


def _render(arguments: argparse.Namespace) -> None:
    from vlad.config.load import load_config
    from vlad.data.render_shards import render_shards

    render_shards(load_config(arguments.config, arguments.overrides).data)


RENDER = Verb(
    "render",
    "Renders the signs that data.synthetic of a config describes into data.shards.",
    add_config,
    _render,
    "vlad shards render configs/tiny.yaml",
    "Where the config names data.held_out, 256 signs whose words are never trained on go there.",
)

SHARDS = VerbGroup("shards", "Makes, checks and renders shards.", {"Verbs": (MAKE, CHECK, RENDER)})
