"""Shared by the benchmarks: rates, the memory of a process, images that decode as slowly as photographs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import psutil
from PIL import Image

from vlad.types import Sample


def rate(count: int, work: Callable[[], object]) -> float:
    """Items per second of work that handles `count` of them, run once."""
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def report(what: str, count: int, work: Callable[[], object]) -> None:
    """Runs the work once and prints its rate."""
    print(f"{what:24} {rate(count, work):8.0f} samples/s")


def private_megabytes(process: int) -> float:
    """Memory that a process does not share with others (USS)."""
    return psutil.Process(process).memory_full_info().uss / 1e6


def add_photo_noise(sample: Sample, seed: int) -> Sample:
    """The sign with noise of all scales, finer noise weaker: a flat sign would decode faster than any photograph."""
    rng = np.random.default_rng(seed)
    height, width = sample.image.shape[:2]
    noise = np.zeros((height, width), dtype=np.float32)
    for cells in (4, 8, 16, 32, 64, 128, 256):
        octave = Image.fromarray(rng.normal(0, 90 / cells**0.6, (cells, cells)).astype(np.float32))
        noise += np.asarray(octave.resize((width, height), Image.Resampling.BICUBIC))
    image = (sample.image + noise[..., None]).clip(0, 255).astype(np.uint8)
    return dataclasses.replace(sample, image=image)
