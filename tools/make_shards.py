"""Makes shards from what you have: python tools/make_shards.py SOURCE --out SHARDS

SOURCE is a folder of images, or one of the formats that --help lists. Interrupted, the same command resumes after
the last finished shard, and the shards come out the same.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from vlad.data.options import AnnotateOptions, MakeShardsOptions
from vlad.utils.command_line import run_command_line


def main() -> None:
    options, engine = _parse_arguments()

    from vlad.data.importers.make_shards import make_shards
    from vlad.metrics.ocr import build_ocr_engine

    # Lines that the engine is unsure of are read too: the importer marks them as not legible.
    make_shards(options, functools.partial(build_ocr_engine, engine, min_confidence=0.0))


def _parse_arguments() -> tuple[MakeShardsOptions, str]:
    """The options, and the name of the OCR engine."""
    from vlad.data.importers.detect_format import FORMATS

    parser = argparse.ArgumentParser(
        description="Makes shards from images and what is known about them.",
        epilog="Formats: "
        + "; ".join(f"{name} ({what})" for name, what in FORMATS.items())
        + ". Where a source has no lines of text, an OCR engine reads them. A caption stands in NAME.txt beside the"
        " image NAME.jpg, or in the source, or is written by --captioner, or is made of the text that was read."
        " Interrupted, the same command resumes after the last finished shard.",
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
    existing.add_argument("--resume", action="store_true", help="resume the shards that were begun at --out")
    existing.add_argument("--overwrite", action="store_true", help="replace the shards that --out holds")
    arguments = parser.parse_args()
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
        on_ray=arguments.engine == "ray",
        workers=arguments.workers,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
    )
    return options, arguments.ocr


if __name__ == "__main__":
    run_command_line(main)
