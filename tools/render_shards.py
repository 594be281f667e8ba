"""Renders the signs of a config into shards: python tools/render_shards.py configs/tiny.yaml"""

from __future__ import annotations

import argparse
import dataclasses
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.errors import UserError, claimed, run_command_line, writable_directory

if TYPE_CHECKING:
    from vlad.data.synthetic import SyntheticOptions

SAMPLES_PER_SHARD = 2000
BEGUN = "begun-by-render-shards"  # stands in the directory while its signs are being rendered


def _render_shard(directory: Path, options: SyntheticOptions, number: int) -> list[dict[str, Any]]:
    from vlad.data.synthetic import render_sign
    from vlad.data.writing import write_shards

    first = number * SAMPLES_PER_SHARD
    indices = range(first, min(first + SAMPLES_PER_SHARD, options.count))
    return write_shards((render_sign(options, i) for i in indices), directory, SAMPLES_PER_SHARD, first_shard=number)


def main() -> int:
    parser = argparse.ArgumentParser(description="Renders the signs that data.synthetic of a config describes.")
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()

    import json

    from vlad.config import load_config
    from vlad.data.synthetic import RENDERER_VERSION
    from vlad.data.writing import MANIFEST

    config = load_config(arguments.config, arguments.overrides)
    options = config.data.synthetic
    about = json.loads(
        json.dumps(
            {
                "made_by": "tools/render_shards.py",
                "renderer_version": RENDERER_VERSION,
                "options": dataclasses.asdict(options),
            }
        )
    )
    if "://" in config.data.shards or any(mark in config.data.shards for mark in "*?{}"):
        raise UserError(f"data.shards: signs are rendered into one local directory, not {config.data.shards}.")
    directory = Path(config.data.shards)
    manifest, begun = directory / MANIFEST, directory / BEGUN
    made_here = begun.is_file()
    if manifest.is_file():
        before = json.loads(manifest.read_text(encoding="utf-8")).get("about", {})
        if before == about:
            print(f"{directory} holds these {options.count} signs already.")
            return 0
        made_here = made_here or before.get("made_by") == about["made_by"]
    if not made_here and any(directory.glob("*.tar")):
        raise UserError(
            f"{directory} holds shards that this tool did not make, and they stay; name another data.shards for"
            " the signs."
        )
    writable_directory(directory, "shards", needed_bytes=options.count * options.size_pixels**2)
    with claimed(directory, "shards"):
        _render(directory, options, about)
    return 0


def _render(directory: Path, options: SyntheticOptions, about: dict[str, Any]) -> None:
    from tqdm import tqdm

    from vlad.data.writing import MANIFEST, write_manifest

    manifest, begun = directory / MANIFEST, directory / BEGUN
    # From here until the manifest is written again the directory says that it is not whole.
    begun.touch()
    manifest.unlink(missing_ok=True)
    for old in directory.glob("*.tar"):
        old.unlink()
    shards = -(-options.count // SAMPLES_PER_SHARD)
    entries = []
    with (
        ProcessPoolExecutor(max_workers=os.cpu_count()) as pool,
        tqdm(total=options.count, desc="rendering signs", unit="sign") as bar,
    ):
        jobs = [pool.submit(_render_shard, directory, options, number) for number in range(shards)]
        for job in jobs:
            entries += job.result()
            bar.update(entries[-1]["samples"])
    write_manifest(directory, entries, about)
    begun.unlink()


if __name__ == "__main__":
    run_command_line(main)
