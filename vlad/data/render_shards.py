"""Rendering signs or posters into shards: the training set that a config describes, and a held-out set beside it.

A directory whose manifest names the same options is kept as it is; shards that were made by anything else are never
replaced.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlad.data import signs
from vlad.data.options import DataOptions, PosterOptions, SyntheticOptions
from vlad.data.posters import render as posters
from vlad.data.shards.writer import MANIFEST, write_manifest, write_shards
from vlad.data.storage.locations import errors_naming
from vlad.data.storage.object_stores import check_location
from vlad.data.storage.urls import is_url
from vlad.types import Sample
from vlad.utils.errors import UserError
from vlad.utils.json_objects import read_object
from vlad.utils.locks import directory_lock
from vlad.utils.paths import checked_path, writable_directory

SAMPLES_PER_SHARD = 2000
HELD_OUT_SAMPLES = 256
MADE_BY = "tools/render_shards.py"  # in the manifests of existing shards
BEGUN = "begun-by-render-shards"  # lies in a directory while its shards are being rendered


Rendered = SyntheticOptions | PosterOptions


def render_shards(data: DataOptions) -> None:
    """Renders `data.posters`, else `data.synthetic`, into `data.shards`, and held-out words into `data.held_out`.

    Raises UserError where a place is no local directory, or holds shards of another origin.
    """
    options: Rendered = data.synthetic if data.posters is None else data.posters
    if data.mix:
        raise UserError("data.mix: one set is rendered; name it as data.shards, with data.mix=[].")
    directory = _local_directory("data.shards", data.shards)
    held_out = None if data.held_out is None else _local_directory("data.held_out", data.held_out)
    if held_out is not None and held_out.resolve() == directory.resolve():
        raise UserError(f"data.held_out: {held_out} is data.shards too, and would replace it; name another directory.")
    sample_bytes = options.size_pixels**2
    if not _render_into(
        directory, _about(options), lambda: _render_training_set(directory, options), options.count * sample_bytes
    ):
        print(f"{directory} holds these {options.count} {_noun(options)}s already.")
    if held_out is not None:
        about = {**_about(options), "held_out": HELD_OUT_SAMPLES}
        samples = held_out_samples(data, HELD_OUT_SAMPLES)
        _render_into(
            held_out, about, lambda: write_shards(samples, held_out, HELD_OUT_SAMPLES), HELD_OUT_SAMPLES * sample_bytes
        )


def _noun(options: Rendered) -> str:
    return "poster" if isinstance(options, PosterOptions) else "sign"


def held_out_samples(data: DataOptions, count: int) -> list[Sample]:
    """Samples as `render_shards` renders them, but of words that training never renders; signs have one line each."""
    if data.posters is not None:
        return posters.held_out_posters(data.posters, count)
    return signs.held_out_signs(data.synthetic, count)


def _local_directory(option: str, pattern: str) -> Path:
    """Raises UserError for a pattern, a URL, and any other place than a local directory."""
    if not pattern.strip() or is_url(pattern) or any(mark in pattern for mark in "*?{}"):
        raise UserError(f"{option}: a set is rendered into one local directory, not {pattern!r}; name one.")
    with errors_naming(option):
        check_location(pattern)
    return checked_path(pattern, f"{option}:")


def _about(options: Rendered) -> dict[str, Any]:
    """What the manifest says of how the samples were made, as JSON reads it back."""
    version = posters.RENDERER_VERSION if isinstance(options, PosterOptions) else signs.RENDERER_VERSION
    about = {"made_by": MADE_BY, "renderer_version": version, "options": dataclasses.asdict(options)}
    return dict(json.loads(json.dumps(about)))


def _about_of(manifest: Path) -> dict[str, Any]:
    """What a manifest says of how its shards were made; empty where it does not say."""
    try:
        about = read_object(manifest)["about"]
    except (OSError, ValueError, KeyError):
        return {}
    return about if isinstance(about, dict) else {}


def _render_into(
    directory: Path, about: dict[str, Any], render: Callable[[], list[dict[str, Any]]], needed_bytes: int
) -> bool:
    """Fills the directory with the shards of `render`, unless it holds them already; True if it rendered."""
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
            " the rendered ones."
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


def _render_training_set(directory: Path, options: Rendered) -> list[dict[str, Any]]:
    """The manifest entries of the shards, rendered on all cores."""
    shards = -(-options.count // SAMPLES_PER_SHARD)
    entries: list[dict[str, Any]] = []
    with (
        ProcessPoolExecutor(max_workers=os.cpu_count()) as pool,
        tqdm(total=options.count, desc=f"rendering {_noun(options)}s", unit=_noun(options)) as bar,
    ):
        jobs = [pool.submit(_render_shard, directory, options, number) for number in range(shards)]
        try:
            for job in jobs:
                entries += job.result()
                bar.update(entries[-1]["samples"])
        except BrokenProcessPool as error:
            raise UserError(
                "A process died while it rendered samples, most likely for want of memory; run the same command again."
            ) from error
    return entries


def _render_shard(directory: Path, options: Rendered, number: int) -> list[dict[str, Any]]:
    first = number * SAMPLES_PER_SHARD
    indices = range(first, min(first + SAMPLES_PER_SHARD, options.count))
    return write_shards((_render(options, i) for i in indices), directory, SAMPLES_PER_SHARD, first_shard=number)


def _render(options: Rendered, index: int) -> Sample:
    if isinstance(options, PosterOptions):
        return posters.render_poster(options, index)
    return signs.render_sign(options, index)
