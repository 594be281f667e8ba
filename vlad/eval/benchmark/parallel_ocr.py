"""Images read on all cores, in processes, a file of what was read beside each.

    images (path, polygons) --> pool of processes, each with its own engine --> READINGS/KEY.json --> ImageOCR
                                       decode, enlarge, read, write

Images are taken as they come, a few ahead, and what was read before is taken from its file: reading overlaps with
whatever makes the images, can be interrupted, and holds no more than a few images at a time.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from vlad.eval.options import Box, OCROptions
from vlad.eval.protocols.protocol import OCRResult
from vlad.layout.layout_files import layout_from_json, line_to_json
from vlad.layout.line_crops import crop_line
from vlad.metrics.ocr import OCREngine, build_ocr_engine, default_enlarge_factor, enlarge
from vlad.types import Polygon
from vlad.utils.parallel import available_cores

MOST_PIXELS = 100_000_000  # an image with more is not decoded
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what `load_image` may raise


@dataclass(frozen=True)
class ImageFile:
    """An image to be read: whole, and in the crops of `polygons` where there are some. `store` is where the reading
    is kept."""

    path: Path
    store: Path
    polygons: tuple[Polygon, ...] = ()


@dataclass(frozen=True)
class ImageOCR:
    """What was read in an image of `width` x `height` pixels, or why nothing could be (`fault`)."""

    reading: OCRResult
    width: int = 0
    height: int = 0
    fault: str | None = None


def ocr_images(images: Iterable[ImageFile], options: OCROptions) -> Iterator[ImageOCR]:
    """The reading of every image, in order.

    Raises UserError for an engine that is unknown or not installed, before the first image is taken.
    """
    engine = build_ocr_engine(options.engine)
    workers = options.workers or available_cores()
    if workers == 1:
        reader = _Reader(engine, options)
        yield from (_stored(image, reader.about) or reader.read(image) for image in images)
        return
    about = _about(engine, options)
    # Spawned: what a forked process inherits of torch's and ONNX's threads does not work.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _begin, (options,))
    waiting: deque[ImageOCR | Future[ImageOCR]] = deque()
    try:
        for image in images:
            waiting.append(_stored(image, about) or pool.submit(_read_in_worker, image))
            while waiting and (len(waiting) > 4 * workers or not isinstance(waiting[0], Future) or waiting[0].done()):
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    except BrokenProcessPool as error:
        raise RuntimeError(
            "A process that was reading images died; the machine may be short of memory: try --workers 1."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _result(item: ImageOCR | Future[ImageOCR]) -> ImageOCR:
    return item.result() if isinstance(item, Future) else item


class _Reader:
    """One process's engine."""

    def __init__(self, engine: OCREngine, options: OCROptions) -> None:
        self.engine, self.options = engine, options
        self.about = _about(engine, options)

    def read(self, file: ImageFile) -> ImageOCR:
        """Reads the image and keeps what was read."""
        try:
            image = load_image(file.path)
        except UNREADABLE as error:
            said = "is no image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
            return ImageOCR(OCRResult(()), fault=said.splitlines()[0])
        height, width = image.shape[:2]
        if self.options.masked is not None:
            image = painted_over(image, self.options.masked)
        factor = self.options.enlarge_factor or default_enlarge_factor(width, height)
        large = enlarge(image, factor)
        # As the file keeps them, so that a reading taken up again is the same.
        kept = [line_to_json(line) for line in self.engine.read(large)]
        lines = layout_from_json({"lines": kept}).lines
        crops = None
        if file.polygons:
            cut = (crop_line(large, polygon) for polygon in file.polygons)
            crops = tuple("" if crop is None else self.engine.read_line(crop) for crop in cut)
        found = ImageOCR(OCRResult(lines, crops), width, height)
        _store(file, self.about, found)
        return found


_reader: _Reader | None = None


def _begin(options: OCROptions) -> None:
    """Makes a worker's engine."""
    global _reader  # noqa: PLW0603 - a process's own, made once
    os.environ["OMP_NUM_THREADS"] = "1"
    _reader = _Reader(build_ocr_engine(options.engine), options)


def _read_in_worker(file: ImageFile) -> ImageOCR:
    assert _reader is not None
    return _reader.read(file)


def load_image(path: Path) -> np.ndarray:
    """The image's pixels (H W 3, uint8), what is transparent on white. Raises one of UNREADABLE."""
    with Image.open(path) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            ground = Image.new("RGBA", image.size, "white")
            return np.asarray(Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB"))
        return np.asarray(image.convert("RGB"))


def painted_over(image: np.ndarray, box: Box) -> np.ndarray:
    """The image (H W 3, uint8) with a box of it, grown by a pixel, in the median colour of what is around."""
    height, width = image.shape[:2]
    left, top = max(0, int(box[0] * width) - 1), max(0, int(box[1] * height) - 1)
    right, bottom = min(width, math.ceil(box[2] * width) + 1), min(height, math.ceil(box[3] * height) + 1)
    ring = np.zeros((height, width), dtype=bool)
    ring[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = True
    ring[top:bottom, left:right] = False
    result = image.copy()
    result[top:bottom, left:right] = np.median(image[ring if ring.any() else ...].reshape(-1, 3), axis=0)
    return result


def _about(engine: OCREngine, options: OCROptions) -> dict[str, Any]:
    masked = {} if options.masked is None else {"masked": list(options.masked)}
    return {"engine": engine.name, "enlarge": options.enlarge_factor, **masked}


def _stamp(file: ImageFile) -> list[Any]:
    """What tells that an image is another one."""
    status = file.path.stat()
    return [status.st_size, status.st_mtime_ns]


def _store(file: ImageFile, about: dict[str, Any], found: ImageOCR) -> None:
    record = {
        **about,
        "stamp": _stamp(file),
        "polygons": file.polygons,
        "width": found.width,
        "height": found.height,
        "lines": [line_to_json(line) for line in found.reading.lines],
        "crops": found.reading.crops,
    }
    temporary = file.store.with_suffix(f".partial-{os.getpid()}")
    temporary.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    temporary.replace(file.store)


def _stored(file: ImageFile, about: dict[str, Any]) -> ImageOCR | None:
    """What was read before, in the same way; None where that is nothing."""
    try:
        record = json.loads(file.store.read_text(encoding="utf-8"))
        # A reading of images with a watermark is none of images without.
        differs = any(record.get(name) != value for name, value in {"masked": None, **about}.items())
        if differs or record["stamp"] != _stamp(file):
            return None
        # Crops that nobody asks for do no harm.
        if file.polygons and record["polygons"] != json.loads(json.dumps(file.polygons)):
            return None
        layout = layout_from_json({"lines": record["lines"]})
        crops = None if record["crops"] is None else tuple(record["crops"])
        return ImageOCR(OCRResult(layout.lines, crops), record["width"], record["height"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
