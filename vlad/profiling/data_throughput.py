"""Data-loading throughput: samples per second from shards, compared with decoding alone."""

from __future__ import annotations

import dataclasses
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vlad.data.batch_buffers import worker_context
from vlad.data.dataset import ShardBatches
from vlad.data.latent_cache.precompute import data_fingerprint, open_cache, write_cache
from vlad.data.options import StreamOptions, SyntheticOptions
from vlad.data.shard_sets import open_sets
from vlad.data.shards.reader import read_members
from vlad.data.shards.writer import write_shards
from vlad.data.signs import render_sign
from vlad.profiling.measurement import add_photo_noise, private_megabytes, rate
from vlad.types import Batch, CachedStates

ROUNDS = 3  # of each measurement


def measure_loading(count: int) -> None:
    """Prints samples per second from shards of 512 x 512 JPEG, each as a share of the decode limit.

    The limit is Pillow's decoding of the same bytes, without anything else, in as many processes.
    """
    with tempfile.TemporaryDirectory() as folder:
        shards, cache = Path(folder) / "shards", Path(folder) / "cache"
        shards.mkdir()
        cache.mkdir()
        options512 = SyntheticOptions(size_pixels=512)
        signs = (add_photo_noise(render_sign(options512, index), index) for index in range(count))
        write_shards(signs, shards, samples_per_shard=500, extension="jpg")
        sets = open_sets({str(shards): 1.0})
        options = StreamOptions(image_pixels=512, batch_size=16, shuffle_window=500)
        fingerprint = data_fingerprint(sets, options)
        write_cache(sets, options, _latents, cache, fingerprint, lambda done: None)
        cached = open_cache(str(cache), fingerprint)
        paths = [shard.path for shard in sets.indexes[0].shards]
        images = [members["jpg"] for path in paths for _, members in read_members(path)]
        print(f"{count} images of 512 x 512, {sum(map(len, images)) / count / 1000:.0f} kB each")
        tar = rate(count, lambda: [list(read_members(path)) for path in paths])
        for workers in (0, 1, 2):
            run = dataclasses.replace(options, workers=workers)
            batches = count // options.batch_size
            kinds = {
                "decode limit": DecodeAlone(images, options.batch_size),
                "whole pipeline to batches": ShardBatches(sets, run, batches),
                # Several times as many: a cached epoch of this size ends before the workers have started.
                "cached latents to batches": ShardBatches(cached, run, 10 * batches),
            }
            # In turn: other load on the machine then affects all of them.
            rounds = [
                [loading_rate(kind, workers, options.batch_size) for kind in kinds.values()] for _ in range(ROUNDS)
            ]
            print(f"{workers} workers" if workers else "in the process itself")
            print(f"  {'raw tar read, one process':28} {tar:8.0f} samples/s")
            for number, what in enumerate(kinds):
                found = statistics.median(row[number][0] for row in rounds)
                share = statistics.median(row[number][0] / row[0][0] for row in rounds)
                memory = rounds[-1][number][1]
                beside = f"  {memory:6.0f} MB a worker" if memory and number else ""
                print(f"  {what:28} {found:8.0f} samples/s  {share:6.2f} of the limit{beside}")
            print(f"  {'cached over whole':28} {statistics.median(row[2][0] / row[1][0] for row in rounds):8.1f}")


def _latents(batch: Batch) -> CachedStates:
    """Random latents of Stable Diffusion's size; reading speed does not depend on their values."""
    image, image_deviation, glyph, glyph_deviation = torch.randn(4, len(batch.keys), 4, 64, 64)
    return CachedStates(image, image_deviation, glyph, glyph_deviation)


class DecodeAlone:
    """A dataset that only decodes images with Pillow; its items are the numbers of images in each batch."""

    def __init__(self, images: list[bytes], batch_size: int) -> None:
        self.images, self.batch_size = images, batch_size

    def __len__(self) -> int:
        return len(self.images) // self.batch_size

    def __getitem__(self, number: int) -> int:
        chosen = self.images[number * self.batch_size : (number + 1) * self.batch_size]
        return len([np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in chosen])


def loading_rate(dataset: Any, workers: int, batch_size: int) -> tuple[float, float | None]:
    """Samples per second of a loader after its first batches, and the private memory of a worker in MB."""
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=worker_context(workers))
    iterator = iter(loader)
    for _ in range(2 * max(1, workers) + 1):  # prefetched by the workers
        next(iterator)
    started, count, memory = time.perf_counter(), 0, None
    for count, _ in enumerate(iterator, start=1):
        if workers and count == 10:
            memory = max(private_megabytes(worker.pid) for worker in iterator._workers)  # type: ignore[attr-defined]
    return count * batch_size / (time.perf_counter() - started), memory
