"""Renders the signs of a config into shards: python tools/render_shards.py configs/tiny.yaml"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from vlad.data.storage.locations import errors_naming
from vlad.utils.command_line import run_command_line
from vlad.utils.errors import UserError
from vlad.utils.locks import directory_lock
from vlad.utils.paths import checked_path, writable_directory

SAMPLES_PER_SHARD = 2000
HELD_OUT = 256  # signs of the held-out set
MADE_BY = "tools/render_shards.py"
BEGUN = "begun-by-render-shards"  # stands in the directory while its signs are being rendered


def _directory(option: str, pattern: str) -> Path:
    """Raises UserError for what names no directory of this machine."""
    from vlad.data.storage.object_stores import refuse_programs
    from vlad.data.storage.urls import is_url

    if not pattern.strip() or is_url(pattern) or any(mark in pattern for mark in "*?{}"):
        raise UserError(f"{option}: signs are rendered into one local directory, not {pattern!r}; name one.")
    with errors_naming(option):
        refuse_programs(pattern)
    return checked_path(pattern, f"{option}:")


def _render_shard(directory: Path, options: Any, number: int) -> list[dict[str, Any]]:
    from vlad.data.shards.writer import write_shards
    from vlad.data.signs import render_sign

    first = number * SAMPLES_PER_SHARD
    indices = range(first, min(first + SAMPLES_PER_SHARD, options.count))
    return write_shards((render_sign(options, i) for i in indices), directory, SAMPLES_PER_SHARD, first_shard=number)


def _about(options: Any) -> Any:
    """What the manifest says of how the signs were made: as JSON reads it back."""
    from vlad.data.signs import RENDERER_VERSION

    made = {"made_by": MADE_BY, "renderer_version": RENDERER_VERSION, "options": dataclasses.asdict(options)}
    return json.loads(json.dumps(made))


def _about_of(manifest: Path) -> dict[str, Any]:
    """What a manifest says of how its shards were made; nothing where it is none of ours."""
    try:
        about = json.loads(manifest.read_bytes())["about"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def _render_into(directory: Path, about: Any, render: Callable[[], list[dict[str, Any]]], needed_bytes: int) -> bool:
    """Fills the directory with what `render` writes, unless it holds that already; whether it was rendered."""
    from vlad.data.shards.writer import MANIFEST, write_manifest

    manifest, begun = directory / MANIFEST, directory / BEGUN
    made_here = begun.is_file()
    if manifest.is_file():
        before = _about_of(manifest)
        if before == about:
            return False
        made_here = made_here or before.get("made_by") == MADE_BY
    if not made_here and any(directory.glob("*.tar")):
        raise UserError(
            f"{directory} holds shards that this tool did not make, and they stay; name another data.shards for"
            " the signs."
        )
    writable_directory(directory, "shards", needed_bytes=needed_bytes)
    with directory_lock(directory, "shards"):
        # From here until the manifest is written again the directory says that it is not whole.
        begun.touch()
        manifest.unlink(missing_ok=True)
        for old in directory.glob("*.tar"):
            old.unlink()
        write_manifest(directory, render(), about)
        begun.unlink()
    return True


def _render_training_set(directory: Path, options: Any) -> list[dict[str, Any]]:
    from tqdm import tqdm

    shards = -(-options.count // SAMPLES_PER_SHARD)
    entries: list[dict[str, Any]] = []
    with (
        ProcessPoolExecutor(max_workers=os.cpu_count()) as pool,
        tqdm(total=options.count, desc="rendering signs", unit="sign") as bar,
    ):
        jobs = [pool.submit(_render_shard, directory, options, number) for number in range(shards)]
        try:
            for job in jobs:
                entries += job.result()
                bar.update(entries[-1]["samples"])
        except BrokenProcessPool as error:
            raise UserError(
                "A process died while it rendered signs, most likely for want of memory; run the same command again."
            ) from error
    return entries


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Renders the signs that data.synthetic of a config describes, and as data.held_out, where a config"
        f" names it, {HELD_OUT} signs whose words training never draws."
    )
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()

    from vlad.config.load import load_config
    from vlad.data.shards.writer import write_shards
    from vlad.data.signs import held_out_signs

    config = load_config(arguments.config, arguments.overrides)
    options = config.data.synthetic
    if config.data.mix:
        raise UserError("data.mix: signs are rendered into one set; name it as data.shards, with data.mix=[].")
    directory = _directory("data.shards", config.data.shards)
    held_out = None if config.data.held_out is None else _directory("data.held_out", config.data.held_out)
    if held_out is not None and held_out.resolve() == directory.resolve():
        raise UserError(f"data.held_out: {held_out} is data.shards too, and would replace it; name another directory.")
    size = options.size_pixels**2
    if not _render_into(
        directory, _about(options), lambda: _render_training_set(directory, options), options.count * size
    ):
        print(f"{directory} holds these {options.count} signs already.")
    if held_out is not None:
        about = {**_about(options), "held_out": HELD_OUT}
        signs = held_out_signs(options, HELD_OUT)
        _render_into(held_out, about, lambda: write_shards(signs, held_out, HELD_OUT), HELD_OUT * size)
    return 0


if __name__ == "__main__":
    run_command_line(main)
