"""Measures parts of the program on this machine: python tools/benchmark.py render|data [--count N]"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlad.errors import UserError, run_command_line


def render(count: int) -> None:
    """Signs a second on one core: drawing alone, and drawing, encoding and writing shards."""
    from vlad.data.synthetic import SyntheticOptions, render_sign
    from vlad.data.writing import write_shards

    options = SyntheticOptions()
    for index in range(500):  # fills the caches of letters, as any set does in its first second
        render_sign(options, index)
    report("draw", count, lambda: [render_sign(options, index) for index in range(count)])
    with tempfile.TemporaryDirectory() as folder:
        signs = (render_sign(options, index) for index in range(count))
        report("draw and write shards", count, lambda: write_shards(signs, Path(folder)))


def data(count: int) -> None:
    """Samples a second from shards of 512 x 512 JPEG, and each as a share of the decode limit.

    The limit is Pillow's decoding of the same bytes, alone, in as many processes.
    """
    import dataclasses

    import torch

    from vlad.data.cache import data_fingerprint, open_cache, write_cache
    from vlad.data.shards import read_members
    from vlad.data.stream import ShardBatches, StreamOptions, open_sets
    from vlad.data.synthetic import SyntheticOptions, render_sign
    from vlad.data.writing import write_shards
    from vlad.records import Batch, CachedStates

    def latents(batch: Batch) -> CachedStates:
        """As large as Stable Diffusion's, and as good as any for being read."""
        states = [torch.randn(len(batch.keys), 4, 64, 64) for _ in range(4)]
        return CachedStates(*states)

    with tempfile.TemporaryDirectory() as folder:
        shards, cache = Path(folder) / "shards", Path(folder) / "cache"
        shards.mkdir()
        cache.mkdir()
        signs = (render_sign(SyntheticOptions(size_pixels=512, ground_share=1.0), index) for index in range(count))
        write_shards(signs, shards, samples_per_shard=500, extension="jpg")
        sets = open_sets({str(shards): 1.0})
        options = StreamOptions(picture_pixels=512, batch_size=16, shuffle_window=500)
        fingerprint = data_fingerprint(sets, options)
        write_cache(sets, options, latents, cache, fingerprint, lambda done: None)
        cached = open_cache(str(cache), fingerprint)
        paths = [shard.path for shard in sets.indexes[0].shards]
        pictures = [members["jpg"] for path in paths for _, members in read_members(path)]
        print(f"{count} pictures of 512 x 512, {sum(map(len, pictures)) / count / 1000:.0f} kB each")
        tar = rate(count, lambda: [list(read_members(path)) for path in paths])
        for workers in (0, 2):
            alone = DecodeAlone(pictures, options.batch_size)
            run = dataclasses.replace(options, workers=workers)
            batches = count // options.batch_size
            limit, _ = loading_rate(alone, workers, options.batch_size)
            whole, whole_memory = loading_rate(ShardBatches(sets, run, batches), workers, options.batch_size)
            # Several rounds: a cached epoch of this size is over before the workers have begun.
            states, states_memory = loading_rate(ShardBatches(cached, run, 10 * batches), workers, options.batch_size)
            print(f"{workers} workers" if workers else "in the process itself")
            for what, found, memory in (
                ("raw tar read, one process", tar, None),
                ("decode limit", limit, None),
                ("whole pipeline to batches", whole, whole_memory),
                ("cached latents to batches", states, states_memory),
            ):
                beside = f"  {memory:6.0f} MB a worker" if memory else ""
                print(f"  {what:28} {found:8.0f} samples/s  {found / limit:6.2f} of the limit{beside}")
            print(f"  {'cached over whole':28} {states / whole:8.1f}")


class DecodeAlone:
    """Pillow's decoding of pictures, and nothing else: gives their number, batch by batch."""

    def __init__(self, pictures: list[bytes], batch_size: int) -> None:
        self.pictures, self.batch_size = pictures, batch_size

    def __len__(self) -> int:
        return len(self.pictures) // self.batch_size

    def __getitem__(self, number: int) -> int:
        import io

        import numpy as np
        from PIL import Image

        chosen = self.pictures[number * self.batch_size : (number + 1) * self.batch_size]
        return len([np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")) for picture in chosen])


def loading_rate(dataset: Any, workers: int, batch_size: int) -> tuple[float, float | None]:
    """Samples a second of a loader after its first batches, and the memory that a worker has for itself, in MB."""
    from torch.utils.data import DataLoader

    context = "fork" if workers else None
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=context)
    iterator = iter(loader)
    for _ in range(2 * max(1, workers) + 1):  # what the workers have prepared meanwhile
        next(iterator)
    started, count, memory = time.perf_counter(), 0, None
    for count, _ in enumerate(iterator, start=1):
        if workers and count == 10:
            memory = max(private_megabytes(worker.pid) for worker in iterator._workers)  # type: ignore[attr-defined]
    return count * batch_size / (time.perf_counter() - started), memory


def private_megabytes(process: int) -> float:
    """Memory that a process shares with no other."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1000


def rate(count: int, work: Callable[[], object]) -> float:
    """How many a second the work does, run once."""
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def report(what: str, count: int, work: Callable[[], object]) -> None:
    """Runs the work once and prints its rate."""
    print(f"{what:24} {rate(count, work):8.0f} samples/s")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures parts of the program; compare figures of one run only.")
    parser.add_argument("part", choices=("render", "data"))
    parser.add_argument("--count", type=int, default=4000)
    arguments = parser.parse_args()
    if arguments.count < 100:
        raise UserError("--count must be at least 100.")
    {"render": render, "data": data}[arguments.part](arguments.count)


if __name__ == "__main__":
    run_command_line(main)
