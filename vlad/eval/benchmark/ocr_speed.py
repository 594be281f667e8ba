"""OCR throughput: images a second, by one process and by one a core, and the memory they hold."""

from __future__ import annotations

import functools
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from vlad.data.options import SyntheticOptions
from vlad.data.signs import render_sign
from vlad.eval.benchmark.parallel_ocr import ImageFile, ocr_images
from vlad.eval.options import OCROptions
from vlad.profiling.measurement import add_photo_noise, private_megabytes, rate
from vlad.types import Sample
from vlad.utils.parallel import available_cores


def measure_ocr_speed(count: int, engine: str) -> None:
    """Prints images (512 x 512) read a second by one process and by one a core, and the memory they hold.

    The images are rendered signs with noise. The start of the processes counts, as in an evaluation.
    """
    options = SyntheticOptions(size_pixels=512)
    cores = available_cores()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        for index in range(count):
            _save_image(add_photo_noise(render_sign(options, index), index), images / f"{index}.jpg")
        print(f"{count} images of 512 x 512, {engine}, {cores} cores")
        rates = []
        for workers in dict.fromkeys((1, cores)):
            store = Path(folder) / f"readings-{workers}"
            store.mkdir()
            read = functools.partial(_read_all, images, store, OCROptions(engine, workers=workers))
            rates.append(rate(count, read))
            print(f"  processes: {workers}  {rates[-1]:6.1f} images/s  {rates[-1] / rates[0]:.2f} of one's rate")


def _save_image(sample: Sample, path: Path) -> None:
    """Writes the sample's image."""
    Image.fromarray(sample.image).save(path, quality=92)


def _read_all(images: Path, store: Path, options: Any) -> None:
    """Reads the folder's images; prints the memory of this process at the first quarter and at the end."""
    paths = sorted(images.iterdir())
    files = (ImageFile(path, store / f"{path.stem}.json") for path in paths)
    for number, _ in enumerate(ocr_images(files, options), start=1):
        if number in (len(paths) // 4, len(paths)):
            workers = sum(private_megabytes(child.pid or 0) for child in multiprocessing.active_children())
            used = private_megabytes(multiprocessing.current_process().pid or 0) + workers
            print(f"    {used:6.0f} MB held by all processes after {number} images")
