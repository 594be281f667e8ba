"""OCR engines behind one interface: rapidocr, tesseract, paddleocr. An image goes in, lines of text come out.

Small images are enlarged first (`enlarge`). Engines keep their default settings, so that everybody who repeats the OCR
gets the same accuracy.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from typing import Any

import numpy as np
from PIL import Image

from vlad.layout.polygons import box_polygon
from vlad.types import OCREngine, TextLine
from vlad.utils.errors import UserError, did_you_mean, install_command
from vlad.utils.parallel import map_in_order

ENGINES = ("rapidocr", "tesseract", "paddleocr")
ENLARGE_FACTOR = 4  # OCR of 64 x 64 images works on 256 x 256
POSTER_PIXELS = 512  # OCR of posters works on so many: four times 128, once 512
_UNREAD = "\ufffd"
MIN_SIDE_PIXELS = 256  # of the shorter side: smaller images are enlarged to it


class RapidOCREngine:
    """rapidocr with its default settings; its wheel contains the models.

    `min_confidence` replaces the engine's threshold, below which it drops a line (None: its default, 0.5); with 0 come
    also the regions that it finds and cannot read, without text. The polygon of upside-down text starts at the text's
    own top left. A line whose box is taller than wide may run up or down: it starts at the box's top left either way.
    """

    def __init__(self, min_confidence: float | None = None) -> None:
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
            # One thread per engine and one engine per core: the same figures, twice as fast as all cores on one image.
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
        if min_confidence is not None:
            self._parameters["Global.text_score"] = min_confidence
        self._local = threading.local()

    def read(self, image: np.ndarray) -> tuple[TextLine, ...]:
        """The lines of an image (H W 3, uint8)."""
        height, width = image.shape[:2]
        engine = self._instance()
        # rapidocr takes arrays as BGR, and files as they are.
        result = engine(np.ascontiguousarray(image[..., ::-1]))
        # Without lines it returns records of other types.
        if getattr(result, "txts", None) is None or getattr(result, "boxes", None) is None:
            return ()
        return tuple(
            TextLine(
                text="" if text == _UNREAD else text,
                polygon=tuple((float(x) / width, float(y) / height) for x, y in np.roll(box, 2 * turned, axis=0)),
                confidence=float(score),
            )
            for text, box, score, turned in zip(result.txts, result.boxes, result.scores, engine.turned, strict=True)
        )

    def read_line(self, crop: np.ndarray) -> str:
        """The text of a crop (H W 3, uint8) of one line."""
        # A separate instance: what a call switches off stays off in later calls of the same one.
        found = self._instance("line")(np.ascontiguousarray(crop[..., ::-1]), use_det=False, use_cls=False)
        return " ".join(getattr(found, "txts", None) or ())

    def _instance(self, kind: str = "image") -> Any:
        """This thread's instance: rapidocr keeps the size of the current image in its parts."""
        if not hasattr(self._local, kind):
            setattr(self._local, kind, _rapidocr_of_all_regions(self._parameters))
        return getattr(self._local, kind)


def _rapidocr_of_all_regions(parameters: dict[str, Any]) -> Any:
    from rapidocr import RapidOCR

    class AllRegions(RapidOCR):
        """Keeps regions without text, as _UNREAD of confidence 0, and notes in `turned` which it read upside down."""

        turned: tuple[bool, ...] = ()

        def build_final_output(self, image: Any, regions: Any, directions: Any, readings: Any, *rest: Any) -> Any:
            if readings.txts is not None and regions.boxes is not None:
                pairs = zip(readings.txts, readings.scores, strict=True)
                readings.scores = tuple(score if text.strip() else 0.0 for text, score in pairs)
                readings.txts = tuple(text if text.strip() else _UNREAD for text in readings.txts)
                found = directions.cls_res or [("0", 0.0)] * len(readings.txts)
                self.turned = tuple(
                    "180" in label and sure > self.text_cls.cls_thresh
                    for (label, sure), score in zip(found, readings.scores, strict=True)
                    if score >= self.text_score  # below it the line is dropped
                )
            return super().build_final_output(image, regions, directions, readings, *rest)

    return AllRegions(params=parameters)


class TesseractEngine:
    """The program `tesseract` for English, in its mode for sparse text (11): signs are no book pages.

    Lines whose words have a mean confidence below `min_confidence` are dropped (None: 0.5, as rapidocr's). Its boxes
    are upright: it reads slanted text badly, and the polygon is the bounding box.
    """

    def __init__(self, min_confidence: float | None = None) -> None:
        program = shutil.which("tesseract")
        if program is None:
            raise UserError(
                "The OCR engine 'tesseract' is not installed; install the program with its English data (Debian: apt"
                " install tesseract-ocr; macOS: brew install tesseract), or use --engine rapidocr."
            )
        try:
            version = self._run([program, "--version"], b"").split()
            languages = self._run([program, "--list-langs"], b"").split()
        except (OSError, RuntimeError) as error:
            raise UserError(f"The OCR engine {program} does not work ({error}); reinstall it.") from error
        if "eng" not in languages:
            raise UserError(
                "The OCR engine 'tesseract' has no English data; install it (Debian: apt install tesseract-ocr-eng)."
            )
        self.name = f"tesseract {version[1] if len(version) > 1 else '?'} (eng, sparse)"
        self._command = [program, "stdin", "stdout", "-l", "eng", "--psm", "11", "tsv"]
        self._line_command = [program, "stdin", "stdout", "-l", "eng", "--psm", "7"]
        self._least_confidence = 0.5 if min_confidence is None else min_confidence

    def read(self, image: np.ndarray) -> tuple[TextLine, ...]:
        """The lines of an image (H W 3, uint8)."""
        height, width = image.shape[:2]
        words: dict[tuple[str, ...], list[dict[str, str]]] = {}
        rows = csv.DictReader(
            io.StringIO(self._run(self._command, _png(image))), delimiter="\t", quoting=csv.QUOTE_NONE
        )
        for row in rows:
            if row["level"] == "5" and (row["text"] or "").strip():
                words.setdefault((row["block_num"], row["par_num"], row["line_num"]), []).append(row)
        lines = (_tesseract_line(line, width, height) for line in words.values())
        return tuple(line for line in lines if (line.confidence or 0.0) >= self._least_confidence)

    def read_line(self, crop: np.ndarray) -> str:
        """The text of a crop (H W 3, uint8) of one line (tesseract's mode 7)."""
        return " ".join(self._run(self._line_command, _png(crop)).split())

    @staticmethod
    def _run(command: list[str], data: bytes) -> str:
        # One thread per engine, one engine per core.
        environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
        result = subprocess.run(command, input=data, capture_output=True, check=False, env=environment)
        if result.returncode:
            said = result.stderr.decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"tesseract: {said[-1] if said else result.returncode}")
        return result.stdout.decode(errors="replace")


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _tesseract_line(words: list[dict[str, str]], width: int, height: int) -> TextLine:
    lefts, tops, widths, heights = (
        np.array([float(word[name]) for word in words]) for name in ("left", "top", "width", "height")
    )
    box = lefts.min() / width, tops.min() / height, (lefts + widths).max() / width, (tops + heights).max() / height
    return TextLine(
        text=" ".join(word["text"].strip() for word in words),
        polygon=box_polygon(*map(float, box)),
        confidence=sum(float(word["conf"]) for word in words) / len(words) / 100,
    )


class PaddleOCREngine:
    """PaddleOCR 3 for English, without its stages for photographed documents, whose unwarping would move the polygons.

    PaddleOCR downloads its models once. Lines below `min_confidence` are dropped (None: 0.5, as rapidocr's).
    """

    def __init__(self, min_confidence: float | None = None) -> None:
        try:
            version = metadata.version("paddleocr")
            import paddleocr  # noqa: F401 - slow to import
        except (ImportError, metadata.PackageNotFoundError) as error:
            raise UserError(
                f"The OCR engine 'paddleocr' is not installed ({error}); run: {install_command('paddle')}, or use"
                " rapidocr, which runs the same family of models."
            ) from error
        if int(version.split(".")[0]) < 3:
            raise UserError(f"The OCR engine 'paddleocr' is version {version}; run: pip install 'paddleocr>=3'.")
        self.name = f"paddleocr {version} (en, no unwarping)"
        self._least_confidence = 0.5 if min_confidence is None else min_confidence
        self._local = threading.local()

    def read(self, image: np.ndarray) -> tuple[TextLine, ...]:
        """The lines of an image (H W 3, uint8)."""
        import paddleocr

        if not hasattr(self._local, "image"):
            self._local.image = paddleocr.PaddleOCR(
                lang="en",
                use_doc_orientation_classify=False,
                use_doc_unwarping=False,
                use_textline_orientation=False,
            )
        height, width = image.shape[:2]
        return tuple(
            TextLine(
                text=text,
                polygon=tuple((float(x) / width, float(y) / height) for x, y in polygon),
                confidence=float(score),
            )
            for page in self._local.image.predict(np.ascontiguousarray(image[..., ::-1]))
            for text, score, polygon in zip(page["rec_texts"], page["rec_scores"], page["rec_polys"], strict=True)
            if score >= self._least_confidence
        )

    def read_line(self, crop: np.ndarray) -> str:
        """The text of a crop (H W 3, uint8) of one line."""
        import paddleocr

        if not hasattr(self._local, "line"):
            self._local.line = paddleocr.TextRecognition()
        return " ".join(page["rec_text"] for page in self._local.line.predict(np.ascontiguousarray(crop[..., ::-1])))


def build_ocr_engine(name: str, min_confidence: float | None = None) -> OCREngine:
    """Builds an engine by name. Raises UserError if it is unknown or not installed."""
    if name == "rapidocr":
        return RapidOCREngine(min_confidence)
    if name == "tesseract":
        return TesseractEngine(min_confidence)
    if name == "paddleocr":
        return PaddleOCREngine(min_confidence)
    raise UserError(f"There is no OCR engine {name!r}.{did_you_mean(name, ENGINES)} Known: {', '.join(ENGINES)}.")


def default_enlarge_factor(width: int, height: int) -> int:
    """The factor by which OCR enlarges an image unless an option sets it."""
    return -(-MIN_SIDE_PIXELS // max(1, min(width, height)))


def poster_enlarge_factor(side_pixels: int) -> int:
    """The factor by which OCR enlarges posters: 4 up to 128 pixels, 2 at 256, 1 from 512."""
    return max(1, min(ENLARGE_FACTOR, POSTER_PIXELS // side_pixels))


def enlarge(image: np.ndarray, factor: int = ENLARGE_FACTOR) -> np.ndarray:
    """The image (H W 3, uint8) `factor` times as wide and high, bicubic."""
    if factor == 1:
        return image
    height, width = image.shape[:2]
    size = (width * factor, height * factor)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def run_ocr(
    engine_name: str,
    images: Iterable[np.ndarray],
    enlarge_factor: int = ENLARGE_FACTOR,
    workers: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[TextLine, ...]]:
    """The lines of every image, in order, with `workers` threads (None: one per core), on which no result depends.

    `on_progress` gets the number of images done so far. Raises UserError like `build_ocr_engine`.
    """
    engine = build_ocr_engine(engine_name)

    def read(image: np.ndarray) -> tuple[TextLine, ...]:
        return engine.read(enlarge(image, enlarge_factor))

    for done, lines in enumerate(map_in_order(read, images, workers), start=1):
        if on_progress is not None:
            on_progress(done)
        yield lines
