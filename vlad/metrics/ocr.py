"""OCR engines behind one seam: an image goes in, lines of text come out.

Small images are enlarged first (`enlarge`). An engine's own settings stay as it ships them: an accuracy then
means the same to everybody who reads the images again.
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
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vlad.layout.polygons import box_polygon
from vlad.types import TextLine
from vlad.utils.errors import UserError, did_you_mean
from vlad.utils.parallel import map_in_order

ENGINES = ("rapidocr", "tesseract", "paddleocr")
ENLARGE_FACTOR = 4  # 64 x 64 images are read at 256 x 256
LEAST_SIDE_PIXELS = 256  # images are enlarged until their shorter side has as many


class OCREngine(Protocol):
    """What reads text. `read` may be called from several threads at once."""

    name: str  # engine and version, for every figure that rests on it

    def read(self, image: np.ndarray) -> tuple[TextLine, ...]:
        """The lines of an image (H W 3, uint8) with polygons in 0..1 and confidences, in the engine's order."""

    def read_line(self, crop: np.ndarray) -> str:
        """The text of an image (H W 3, uint8) that holds one line and nothing else, whatever its confidence."""


class RapidOCREngine:
    """rapidocr with its default settings; the models come inside its wheel.

    `min_confidence` replaces the engine's own, under which it keeps a line to itself (None: as it ships, 0.5).
    A line whose box is taller than wide may run up or down: its polygon starts at the box's top left either way.
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
            # One thread an engine and one engine a core: the same figures, twice as fast as all cores on one image.
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
        if min_confidence is not None:
            self._parameters["Global.text_score"] = min_confidence
        self._local = threading.local()

    def read(self, image: np.ndarray) -> tuple[TextLine, ...]:
        """The lines of an image (H W 3, uint8)."""
        height, width = image.shape[:2]
        # rapidocr takes arrays as BGR, and files as they are.
        result = self._reader()(np.ascontiguousarray(image[..., ::-1]))
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

    def read_line(self, crop: np.ndarray) -> str:
        """The text of an image (H W 3, uint8) that holds one line."""
        # A reader of its own: rapidocr keeps what a call leaves out for all later calls.
        found = self._reader("line")(np.ascontiguousarray(crop[..., ::-1]), use_det=False, use_cls=False)
        return " ".join(getattr(found, "txts", None) or ())

    def _reader(self, kind: str = "image") -> Any:
        """This thread's own reader: rapidocr's parts keep the image's size in themselves while they work."""
        if not hasattr(self._local, kind):
            from rapidocr import RapidOCR

            setattr(self._local, kind, RapidOCR(params=self._parameters))
        return getattr(self._local, kind)


class TesseractEngine:
    """The program `tesseract`, English, told that an image's text is sparse (its mode 11): signs are no book pages.

    `min_confidence` is the mean of a line's words under which it is left out (None: 0.5, as rapidocr's). Its boxes
    are upright ones: text that runs askew is read badly, and its polygon is its bounding box.
    """

    def __init__(self, min_confidence: float | None = None) -> None:
        program = shutil.which("tesseract")
        if program is None:
            raise UserError(
                "The OCR engine 'tesseract' is not installed; install the program with its English data (Debian: apt"
                " install tesseract-ocr; macOS: brew install tesseract), or use --ocr rapidocr."
            )
        try:
            version = self._run([program, "--version"], b"").split()
            languages = self._run([program, "--list-langs"], b"").split()
        except (OSError, RuntimeError) as error:
            raise UserError(f"The OCR engine {program} does not work ({error}); install it anew.") from error
        if "eng" not in languages:
            raise UserError(
                "The OCR engine 'tesseract' has no English data; install them (Debian: apt install tesseract-ocr-eng)."
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
        """The text of an image (H W 3, uint8) that holds one line (tesseract's mode 7)."""
        return " ".join(self._run(self._line_command, _png(crop)).split())

    @staticmethod
    def _run(command: list[str], data: bytes) -> str:
        # One thread an engine, one engine a core.
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
    """PaddleOCR 3, English, without its stages for photographed documents, whose unwarping would move the polygons.

    It fetches its models once, unless PaddleOCR finds them on the machine. `min_confidence` is that of a line (None:
    0.5, as rapidocr's).
    """

    def __init__(self, min_confidence: float | None = None) -> None:
        try:
            version = metadata.version("paddleocr")
            import paddleocr  # noqa: F401 - slow to import
        except (ImportError, metadata.PackageNotFoundError) as error:
            raise UserError(
                f"The OCR engine 'paddleocr' is not installed ({error}); run: pip install 'vlad[paddle]', or use"
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
        """The text of an image (H W 3, uint8) that holds one line."""
        import paddleocr

        if not hasattr(self._local, "line"):
            self._local.line = paddleocr.TextRecognition()
        return " ".join(page["rec_text"] for page in self._local.line.predict(np.ascontiguousarray(crop[..., ::-1])))


def build_ocr_engine(name: str, min_confidence: float | None = None) -> OCREngine:
    """The engine of a name. Raises UserError for one we don't know or that is not installed."""
    if name == "rapidocr":
        return RapidOCREngine(min_confidence)
    if name == "tesseract":
        return TesseractEngine(min_confidence)
    if name == "paddleocr":
        return PaddleOCREngine(min_confidence)
    raise UserError(f"There is no OCR engine {name!r}.{did_you_mean(name, ENGINES)} Known: {', '.join(ENGINES)}.")


def default_enlarge_factor(width: int, height: int) -> int:
    """How many times an image is enlarged to be read, unless the user says otherwise."""
    return -(-LEAST_SIDE_PIXELS // max(1, min(width, height)))


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
    """The lines of every image, in order, read on `workers` threads (None: one a core).

    `on_progress` is called with the number of images read so far. What is read does not depend on `workers`.
    Raises UserError like `build_ocr_engine`.
    """
    engine = build_ocr_engine(engine_name)

    def read(image: np.ndarray) -> tuple[TextLine, ...]:
        return engine.read(enlarge(image, enlarge_factor))

    for done, lines in enumerate(map_in_order(read, images, workers), start=1):
        if on_progress is not None:
            on_progress(done)
        yield lines
