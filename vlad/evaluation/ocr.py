"""OCR engines behind one seam: a picture goes in, lines of text come out.

Small pictures are enlarged first (`enlarge`). An engine's own settings stay as it ships them: an accuracy then
means the same to everybody who reads the pictures again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vlad.data.parallel import map_in_order
from vlad.errors import UserError, did_you_mean
from vlad.records import TextLine

ENGINES = ("rapidocr",)
ENLARGE_FACTOR = 4  # 64 x 64 pictures are read at 256 x 256


class OCREngine(Protocol):
    """What reads text. `read` may be called from several threads at once."""

    name: str  # engine and version, for every figure that rests on it

    def read(self, picture: np.ndarray) -> tuple[TextLine, ...]:
        """The lines of a picture (H W 3, uint8) with polygons in 0..1 and confidences, in the engine's order."""


class RapidOCREngine:
    """rapidocr with its default settings; the models come inside its wheel.

    `least_confidence` replaces the engine's own, under which it keeps a line to itself (None: as it ships, 0.5).
    A line whose box is taller than wide may run up or down: its polygon starts at the box's top left either way.
    """

    def __init__(self, least_confidence: float | None = None) -> None:
        try:
            import onnxruntime  # noqa: F401 - slow to import
            import rapidocr  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"The OCR engine 'rapidocr' is not installed ({error}); run: pip install rapidocr onnxruntime."
            ) from error
        self.name = f"rapidocr {metadata.version('rapidocr')}"
        self._parameters: dict[str, Any] = {
            "Global.log_level": "error",
            # One thread an engine and one engine a core: the same figures, twice as fast as all cores on one picture.
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
        if least_confidence is not None:
            self._parameters["Global.text_score"] = least_confidence
        self._local = threading.local()

    def read(self, picture: np.ndarray) -> tuple[TextLine, ...]:
        """The lines of a picture (H W 3, uint8)."""
        height, width = picture.shape[:2]
        # rapidocr takes arrays as BGR, and files as they are.
        result = self._reader()(np.ascontiguousarray(picture[..., ::-1]))
        # With nothing found it answers with records of several kinds; only the full one has lines.
        if getattr(result, "txts", None) is None or getattr(result, "boxes", None) is None:
            return ()
        return tuple(
            TextLine(
                text=text,
                polygon=tuple((float(x) / width, float(y) / height) for x, y in box),
                confidence=float(score),
            )
            for text, box, score in zip(result.txts, result.boxes, result.scores, strict=True)
        )

    def _reader(self) -> Any:
        """This thread's own reader: rapidocr's parts keep the picture's size in themselves while they work."""
        if not hasattr(self._local, "reader"):
            from rapidocr import RapidOCR

            self._local.reader = RapidOCR(params=self._parameters)
        return self._local.reader


def build_engine(name: str, least_confidence: float | None = None) -> OCREngine:
    """The engine of a name. Raises UserError for one we don't know or that is not installed."""
    if name == "rapidocr":
        return RapidOCREngine(least_confidence)
    raise UserError(f"There is no OCR engine {name!r}.{did_you_mean(name, ENGINES)} Known: {', '.join(ENGINES)}.")


def enlarge(picture: np.ndarray, factor: int = ENLARGE_FACTOR) -> np.ndarray:
    """The picture (H W 3, uint8) `factor` times as wide and high, bicubic."""
    if factor == 1:
        return picture
    height, width = picture.shape[:2]
    size = (width * factor, height * factor)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def read_many(
    engine_name: str,
    pictures: Iterable[np.ndarray],
    enlarge_factor: int = ENLARGE_FACTOR,
    workers: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[TextLine, ...]]:
    """The lines of every picture, in order, read on `workers` threads (None: one a core).

    `on_progress` is called with the number of pictures read so far. What is read does not depend on `workers`.
    Raises UserError like `build_engine`.
    """
    engine = build_engine(engine_name)

    def read(picture: np.ndarray) -> tuple[TextLine, ...]:
        return engine.read(enlarge(picture, enlarge_factor))

    for done, lines in enumerate(map_in_order(read, pictures, workers), start=1):
        if on_progress is not None:
            on_progress(done)
        yield lines
