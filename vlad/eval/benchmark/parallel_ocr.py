"""OCR of image files on all cores, with a JSON file of what was read in each.

    images (path, polygons) --> pool of processes, each with its own engine --> OUT/readings/KEY.json --> ImageOCR
                                       decode, enlarge, read, write

Images are taken as they come, a few ahead, and what was read before is taken from its file: OCR overlaps with the
generation of images, can be interrupted, and holds no more than a few images in memory.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlad.data.decoding import MAX_IMAGE_ASPECT
from vlad.eval.image_files import load_image, paint_over
from vlad.eval.options import OCROptions
from vlad.eval.protocols.protocol import OCRResult
from vlad.layout.layout_files import layout_from_json, line_to_json
from vlad.layout.line_crops import crop_line
from vlad.metrics.ocr import build_ocr_engine, default_enlarge_factor, enlarge
from vlad.types import OCREngine, Polygon
from vlad.utils.errors import reason_of
from vlad.utils.json_objects import read_object
from vlad.utils.parallel import available_cores


@dataclass(frozen=True)
class ImageFile:
    """An image to be read, whole and in the crop of each polygon; `store` is the file of what was read."""

    path: Path
    store: Path
    polygons: tuple[Polygon, ...] = ()


@dataclass(frozen=True)
class ImageOCR:
    """The OCR result of an image of `width` x `height` pixels, or why it could not be read (`fault`)."""

    result: OCRResult
    width: int = 0
    height: int = 0
    fault: str | None = None


def ocr_images(images: Iterable[ImageFile], options: OCROptions) -> Iterator[ImageOCR]:
    """The OCR result of every image, in order.

    Raises UserError for an unknown or missing engine, before the first image is taken.
    """
    engine = build_ocr_engine(options.engine)
    workers = options.workers or available_cores()
    if workers == 1:
        worker = _Worker(engine, options)
        yield from (_stored_result(image, worker.settings) or worker.read(image) for image in images)
        return
    settings = _ocr_settings(engine, options)
    # Spawned: what a forked process inherits of torch's and ONNX's threads does not work.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (options,))
    waiting: deque[ImageOCR | Future[ImageOCR]] = deque()
    try:
        for image in images:
            waiting.append(_stored_result(image, settings) or pool.submit(_read_in_worker, image))
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


class _Worker:
    """An OCR engine and its settings, one a process."""

    def __init__(self, engine: OCREngine, options: OCROptions) -> None:
        self.engine, self.options = engine, options
        self.settings = _ocr_settings(engine, options)

    def read(self, file: ImageFile) -> ImageOCR:
        """Reads the image and stores what was read; an error is a fault of this image alone."""
        try:
            return self._read(file)
        except Exception as error:  # an engine's libraries share no class of errors
            return ImageOCR(OCRResult(()), fault=f"the OCR engine fails on it ({reason_of(error)})")

    def _read(self, file: ImageFile) -> ImageOCR:
        try:
            image = load_image(file.path)
        except ValueError as error:
            return ImageOCR(OCRResult(()), fault=str(error).splitlines()[0])
        height, width = image.shape[:2]
        if max(width, height) > MAX_IMAGE_ASPECT * min(width, height):
            return ImageOCR(
                OCRResult(()), fault=f"{width} x {height}: one side is over {MAX_IMAGE_ASPECT} times the other"
            )
        if self.options.masked is not None:
            image = paint_over(image, self.options.masked)
        factor = self.options.enlarge_factor or default_enlarge_factor(width, height)
        large = enlarge(image, factor)
        # As the file stores them, so that a stored result is the same.
        stored = [line_to_json(line) for line in self.engine.read(large)]
        lines = layout_from_json({"lines": stored}).lines
        crops = None
        if file.polygons:
            cut = (crop_line(large, polygon) for polygon in file.polygons)
            crops = tuple("" if crop is None else self.engine.read_line(crop) for crop in cut)
        ocr = ImageOCR(OCRResult(lines, crops), width, height)
        _store_result(file, self.settings, ocr)
        return ocr


_worker: _Worker | None = None


def _start_worker(options: OCROptions) -> None:
    """Builds a worker process's engine."""
    global _worker  # noqa: PLW0603 - one a process
    os.environ["OMP_NUM_THREADS"] = "1"
    _worker = _Worker(build_ocr_engine(options.engine), options)


def _read_in_worker(file: ImageFile) -> ImageOCR:
    assert _worker is not None
    return _worker.read(file)


def _ocr_settings(engine: OCREngine, options: OCROptions) -> dict[str, Any]:
    masked = {} if options.masked is None else {"masked": list(options.masked)}
    return {"engine": engine.name, "enlarge": options.enlarge_factor, **masked}


def _file_stamp(file: ImageFile) -> list[Any]:
    """Size and time of an image: another one has another stamp."""
    status = file.path.stat()
    return [status.st_size, status.st_mtime_ns]


def _store_result(file: ImageFile, settings: dict[str, Any], ocr: ImageOCR) -> None:
    record = {
        **settings,
        "stamp": _file_stamp(file),
        "polygons": file.polygons,
        "width": ocr.width,
        "height": ocr.height,
        "lines": [line_to_json(line) for line in ocr.result.lines],
        "crops": ocr.result.crops,
    }
    temporary = file.store.with_suffix(f".partial-{os.getpid()}")
    temporary.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    temporary.replace(file.store)


def _stored_result(file: ImageFile, settings: dict[str, Any]) -> ImageOCR | None:
    """What was read before with the same settings; None where there is nothing of the kind."""
    try:
        record = read_object(file.store)
        # What was read with a watermark does not count for the image without.
        differs = any(record.get(name) != value for name, value in {"masked": None, **settings}.items())
        if differs or record["stamp"] != _file_stamp(file):
            return None
        # Crops that are not needed do no harm.
        if file.polygons and record["polygons"] != json.loads(json.dumps(file.polygons)):
            return None
        layout = layout_from_json({"lines": record["lines"]})
        crops = None if record["crops"] is None else tuple(record["crops"])
        return ImageOCR(OCRResult(layout.lines, crops), record["width"], record["height"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
