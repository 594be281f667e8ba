"""Options of evaluation: OCR, generation, benchmarks, the modes in which held-out words are generated.

Imports nothing heavy: a command line builds these before any model library is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from vlad.pipeline.options import check_scale
from vlad.utils.errors import UserError

Box = tuple[float, float, float, float]  # left, top, right, bottom in 0..1
WEIGHTS = Path("weights")  # where the weights of Inception and CLIP are looked for
# DeepFloyd's watermark: 62 pixels of 1024, 14 from the right and the lower edge.
WATERMARK: Box = (1 - 76 / 1024, 1 - 76 / 1024, 1 - 14 / 1024, 1 - 14 / 1024)
PROTOCOL_NAMES = ("mario", "anytext", "cvtg", "longtext", "glyphcontrol", "textatlas")

Split = Literal["dev", "test"]  # of the open benchmark: test has words that are held out of training

# How a run generates held-out words: `vlad/eval/held_out_words/spelling_evaluation.py` explains them.
GenerationMode = Literal["refit", "true layout", "raw", "no layout"]
GENERATION_MODES: tuple[GenerationMode, ...] = ("refit", "true layout", "raw")  # of a run with a layout stage
MOST_WORDS = 10_000  # all images are generated before the first is read


def mode_name(mode: str) -> str:
    """A generation mode, or a row of a table, as folders and options spell it: true-layout."""
    return mode.replace(",", "").replace(" ", "-")


MODES_BY_NAME: dict[str, GenerationMode] = {mode_name(mode): mode for mode in GENERATION_MODES}


@dataclass(frozen=True)
class OCROptions:
    """How images are read. `enlarge_factor` None: until the shorter side has 256 pixels.

    `workers` processes; 1 reads in the calling one, None takes a process a core. `masked` is a box that is painted
    over before an image is read: a watermark.
    """

    engine: str = "rapidocr"
    enlarge_factor: int | None = None
    workers: int | None = None
    masked: Box | None = None


@dataclass(frozen=True)
class GenerationOptions:
    """How images are generated; None leaves it to the pipeline. `pixels` and `batch_size` are of pipelines other than
    VLADPipeline."""

    steps: int | None = None
    text_scale: float | None = None
    layout_scale: float | None = None
    refit: bool | None = None
    pixels: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("text_scale", "layout_scale"):
            if (value := getattr(self, name)) is not None:
                check_scale(name, value)


@dataclass(frozen=True)
class BenchmarkOptions:
    """What is scored and how. `first` and `images_per_prompt` None: all prompts, and one image each (of a folder, as
    many as there are). `references` None: those that the prompt files name. `generation` does not apply to entries."""

    prompts: tuple[Path, ...]
    protocol: str = "all"
    ocr: OCROptions = field(default_factory=OCROptions)
    first: int | None = None
    images_per_prompt: int | None = None
    seed: int = 0
    use_layouts: bool = False
    weights: Path = WEIGHTS
    vision_encoders: tuple[Path, ...] = ()
    references: Path | None = None
    generation: GenerationOptions = field(default_factory=GenerationOptions)


@dataclass(frozen=True)
class OpenBenchmarkOptions:
    """Which open benchmark: `count` prompts a subset, images of `size_pixels` a side."""

    seed: int = 0
    split: Split = "test"
    count: int = 50
    size_pixels: int = 512

    def __post_init__(self) -> None:
        if self.count < 1 or self.size_pixels < 64 or self.seed < 0 or self.split not in get_args(Split):
            raise UserError("The benchmark needs count >= 1, size >= 64 pixels, seed >= 0 and a split of dev or test.")
