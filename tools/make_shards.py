"""Makes shards from a folder of pictures: python tools/make_shards.py FOLDER --out SHARDS

Text is read by an OCR engine; a caption stands in NAME.txt beside the picture NAME.jpg, or is made of what was read.
Interrupted, the same command goes on after the last whole shard.
"""

from __future__ import annotations

import argparse
import errno
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.errors import UserError, run_command_line, writable_directory

if TYPE_CHECKING:
    from tqdm import tqdm

    from vlad.data.importers.folder import Skipped
    from vlad.records import Sample

# What a picture takes in a shard, at most, at the importer's 1024 pixels.
BYTES_A_PICTURE = {"jpg": 600_000, "png": 2_400_000}
# Says what is being made while the manifest is still missing.
BEGUN = "begun.json"
SHARD_NAME = re.compile(r"\d{6}\.tar(\.partial)?")


def main() -> int:
    arguments = _parse_arguments()

    # Imported late, here and below, so that --help and mistakes are answered at once.
    from vlad.data.importers.folder import FolderOptions, find_pictures, import_pictures, sample_keys

    options = FolderOptions(max_strings=arguments.max_strings)
    if arguments.samples_per_shard < 1:
        raise UserError(f"--samples-per-shard must be at least 1, not {arguments.samples_per_shard}.")
    pictures = find_pictures(arguments.folder)
    keys = sample_keys(arguments.folder, pictures)
    out: Path = arguments.out
    if not arguments.overwrite:
        _refuse_whole_set(out)
    writable_directory(out, "a set of shards", needed_bytes=len(pictures) * BYTES_A_PICTURE[arguments.format])

    from vlad.evaluation.ocr import build_engine

    # What the engine is unsure of comes too: there the importer marks the line as not legible.
    engine = build_engine(arguments.engine, least_confidence=0.0)

    import warnings

    from tqdm import tqdm

    from vlad.data.writing import write_manifest, write_shards

    about = {
        "made_by": "tools/make_shards.py",
        "folder": arguments.folder.resolve().name,
        "engine": engine.name,
        "format": arguments.format,
        "samples_per_shard": arguments.samples_per_shard,
        "max_strings": options.max_strings,
        "max_side_pixels": options.max_side_pixels,
    }
    entries, done = _take_up(out, about, arguments.overwrite)
    if done:
        print(f"{out} was begun: goes on after {len(done)} pictures in {len(entries)} shards.")
    remaining = [(picture, key) for picture, key in zip(pictures, keys, strict=True) if key not in done]

    warnings.filterwarnings("ignore", module="PIL")  # about odd metadata, which changes no pixel
    summary = Summary(taken=len(done))
    with tqdm(total=len(remaining), desc="reading pictures", unit="picture") as bar:
        items = import_pictures([path for path, _ in remaining], [key for _, key in remaining], engine.read, options)
        samples = summary.counted(items, bar)
        try:
            entries += write_shards(samples, out, arguments.samples_per_shard, arguments.format, len(entries))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"The disk of {out} is full; make room and run the same command again: it goes on after the last"
                " whole shard."
            ) from error
    print(summary.text(out, len(entries)))
    if entries:
        write_manifest(out, entries, about)
    (out / BEGUN).unlink()
    if not entries:
        raise UserError(
            f"Not one of the {len(pictures)} pictures in {arguments.folder} can be used; the reasons stand above."
        )
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Makes shards from a folder of pictures (jpg, jpeg, png, webp; folders below it too).",
        epilog="A caption stands in NAME.txt beside the picture NAME.jpg, or is made of the text that the OCR engine"
        " reads. Interrupted, the same command goes on after the last whole shard.",
    )
    parser.add_argument("folder", type=Path, help="the folder with the pictures")
    parser.add_argument("--out", type=Path, required=True, help="the directory for the shards")
    parser.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="default 1000")
    parser.add_argument("--max-strings", type=int, default=3, metavar="N", help="strings in a made caption, default 3")
    parser.add_argument("--engine", default="rapidocr", help="OCR engine, default rapidocr")
    parser.add_argument("--format", choices=("jpg", "png"), default="jpg", help="of the pictures in the shards")
    parser.add_argument("--overwrite", action="store_true", help="replace the shards that --out holds")
    return parser.parse_args()


def _refuse_whole_set(out: Path) -> None:
    """Raises UserError where shards stand that this tool has not begun, or has finished."""
    if (out / "manifest.json").exists() or (not (out / BEGUN).exists() and any(out.glob("*.tar"))):
        raise UserError(f"{out} holds shards already; name another directory, or add --overwrite to replace them.")


def _take_up(out: Path, about: dict[str, Any], overwrite: bool) -> tuple[list[dict[str, Any]], set[str]]:
    """The manifest entries of the shards that an interrupted run left, and the keys in them."""
    from vlad.data.shards import read_members
    from vlad.data.writing import MANIFEST, shard_entry

    begun = out / BEGUN
    if overwrite:
        (out / MANIFEST).unlink(missing_ok=True)
        begun.unlink(missing_ok=True)
        for path in out.iterdir():
            if SHARD_NAME.fullmatch(path.name):
                path.unlink()
    if not begun.exists():
        begun.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        return [], set()
    try:
        known = json.loads(begun.read_text(encoding="utf-8"))
    except ValueError:  # the machine stopped while it was written
        known = None
    if known != about:
        raise UserError(
            f"{out} holds shards that were begun from another folder or with other settings ({BEGUN} there says"
            " which); name another directory, or add --overwrite to replace them."
        )
    entries, done = [], set()
    for path in sorted(out.glob("*.tar")):
        shard_keys = [key for key, _ in read_members(str(path))]
        entries.append(shard_entry(path, len(shard_keys)))
        done.update(shard_keys)
    return entries, done


@dataclass
class Summary:
    """What became of the pictures."""

    taken: int = 0
    lines: int = 0
    illegible: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def counted(self, items: Iterable[Sample | Skipped], bar: tqdm) -> Iterator[Sample]:
        """The samples among the items; every item is counted and moves the bar."""
        from vlad.records import Sample

        for item in items:
            bar.update()
            if isinstance(item, Sample):
                self.taken += 1
                self.lines += len(item.layout.lines)
                self.illegible += sum(not line.valid for line in item.layout.lines)
                yield item
            else:
                self.skipped.append(item)

    def text(self, out: Path, shards: int) -> str:
        """The closing lines, with every skipped picture by name."""
        lines = [
            f"pictures taken: {self.taken} (shards: {shards}, at {out})",
            f"lines of text read in this run: {self.lines}, of them marked as not legible: {self.illegible}",
            f"pictures skipped: {len(self.skipped)}",
        ]
        lines += [f"  {item.path}: {item.reason}" for item in self.skipped]
        # A file name may hold bytes that are no text.
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode("utf-8")


if __name__ == "__main__":
    run_command_line(main)
