"""Options of `vlad sample` as one frozen record, and how seeds, sizes and aspect ratios are written.

Imports nothing heavy: a mistake is reported before torch is loaded.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlad.pipeline.options import SCALES, check_scale
from vlad.utils.errors import UserError

MOST_SEEDS = 100_000
SEED_LIMIT = 2**63


@dataclass(frozen=True)
class SampleCall:
    """What one call of `vlad sample` asks for; what it leaves open comes from `--from` or from the model.

    Raises UserError for options that exclude each other, and for guidance scales out of range.
    """

    # A run directory, a pipeline folder, or hf://OWNER/NAME[@REVISION]; None: the repeated image's.
    run: str | None = None
    prompts: tuple[str, ...] = ()
    # Text or JSONL; "-" is standard input.
    prompt_files: tuple[str, ...] = ()
    # None: that of the repeated image, or 0.
    seeds: tuple[int, ...] | None = None
    # --from: an image whose recipe fills in the rest.
    repeat: str | None = None
    # Where the words go; one of the three.
    layout_file: str | None = None
    lines: tuple[str, ...] = ()
    template: str | None = None
    # An image of which a masked part is generated anew.
    edit: str | None = None
    masks: tuple[str, ...] = ()
    # Fields of `SampleSettings` that the call sets.
    settings: Mapping[str, Any] = field(default_factory=dict)
    # Width over height, in place of a size.
    aspect: float | None = None
    solver: str | None = None
    # Raw glyph maps that the OCR engine reads as wanted are not refitted.
    keep_raw: bool = False
    layout_only: bool = False
    # How the model is loaded; None: as that of the repeated image.
    adapters: tuple[str, ...] | None = None
    dtype: str | None = None
    offload: bool = False
    channels_last: bool = False
    compiled: bool = False
    out: Path = Path("samples")
    overwrite: bool = False

    def __post_init__(self) -> None:
        places = {"--layout": self.layout_file, "--line": self.lines, "--template": self.template}
        given = [name for name, value in places.items() if value]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} all say where the words go; give one of them.")
        if "width" in self.settings and self.aspect is not None:
            raise UserError("--size and --aspect both say what shape the images have; give one of the two.")
        for name in SCALES:
            if name in self.settings:
                check_scale(f"--{name.replace('_', '-')}", self.settings[name])

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> SampleCall:
        """The record of a parsed command line. Raises UserError for seeds, sizes and ratios that cannot be read."""
        names = ("steps", *SCALES, "guidance_rescale", "negative_prompt", "batch_size")
        settings = {name: value for name in names if (value := getattr(arguments, name)) is not None}
        if arguments.no_refit:
            settings["refit"] = False
        if arguments.size:
            settings["width"], settings["height"] = parse_size(arguments.size)
        return cls(
            run=arguments.run,
            prompts=tuple(arguments.prompt),
            prompt_files=tuple(arguments.prompts),
            seeds=None if arguments.seed is None else parse_seeds(arguments.seed, "--seed: "),
            repeat=arguments.repeat,
            layout_file=arguments.layout,
            lines=tuple(arguments.line or ()),
            template=arguments.template,
            edit=arguments.edit,
            masks=tuple(arguments.mask),
            settings=settings,
            aspect=parse_aspect(arguments.aspect) if arguments.aspect else None,
            solver=arguments.solver,
            keep_raw=arguments.keep_raw,
            layout_only=arguments.layout_only,
            adapters=tuple(arguments.adapter) if arguments.adapter else None,
            dtype=arguments.dtype,
            offload=arguments.offload,
            channels_last=arguments.channels_last,
            compiled=arguments.compile,
            out=Path(arguments.out),
            overwrite=arguments.overwrite,
        )


def parse_seeds(text: str, label: str = "") -> tuple[int, ...]:
    """Seeds as people write them: "7", "0-9", "1,5,8-10". Raises UserError, whose text begins with `label`."""
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,19})\s*(?:-\s*(\d{1,19})\s*)?", part)
        if match is None:
            raise UserError(
                f"{label}{text[:60]!r} are no seeds; write a number from 0, or several like 0-9 or 1,5,8-10."
            )
        first = int(match.group(1))
        last = int(match.group(2)) if match.group(2) else first
        if last < first or last >= SEED_LIMIT or len(seeds) + last - first >= MOST_SEEDS:
            raise UserError(
                f"{label}The seeds {text[:60]!r} must rise, be less than 2**63, and be {MOST_SEEDS} at most."
            )
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return tuple(seeds)


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of "96x64", or of "96" for a square. Raises UserError for anything else."""
    match = re.fullmatch(r"\s*(\d{1,5})\s*(?:[xX×*]\s*(\d{1,5})\s*)?", text)
    if match is None:
        raise UserError(f"{text!r} is no size; write WIDTHxHEIGHT in pixels, like 96x64.")
    return int(match.group(1)), int(match.group(2) or match.group(1))


def parse_aspect(text: str) -> float:
    """Width over height of "3:2". Raises UserError for anything else, and for a ratio beyond 8."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*[:/]\s*(\d+(?:\.\d+)?)\s*", text)
    width, height = (float(match.group(1)), float(match.group(2))) if match else (0.0, 0.0)
    if not (width > 0 and height > 0 and 1 / 8 <= width / height <= 8):
        raise UserError(f"{text!r} is no aspect ratio; write WIDTH:HEIGHT, like 3:2, from 1:8 to 8:1.")
    return width / height
