"""Entries of configs/eval/: a generator or a folder of images each, as a YAML file; the rows of Table I.

kind            what `path` names
pipeline        a text-to-image pipeline in diffusers' format
vlad            a run or pipeline of ours
fine_tuned      a run or pipeline of ours that was trained without stage one (layout.kind: none)
controlnet      a Stable Diffusion; `controlnet` its ControlNet, which takes images of our layouts
textdiffuser    a Stable Diffusion; `unet` the 17-channel UNet, which takes character masks of our layouts
deepfloyd       a folder with the three stages IF-I, IF-II and upscaler, or as `stages` names them
images          a folder of images that are made already (version 0.1: pictures)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from vlad.config.load import load_options
from vlad.eval.generators.baselines import DeepFloydIF, GlyphControlNet, TextDiffuser
from vlad.eval.generators.generator import Generator, weights_digest
from vlad.eval.generators.pipeline_generators import DiffusersGenerator, VLADGenerator, build_generator
from vlad.eval.generators.text_to_image import PIXELS_PER_LATENT
from vlad.eval.options import WATERMARK, Box, GenerationOptions
from vlad.eval.protocols.protocol import BenchmarkPrompt
from vlad.inference.load_pipeline import load_pipeline
from vlad.layout.control_images import centred_layout
from vlad.pipeline.folders import pipeline_folder
from vlad.pipeline.options import MOST_SCALE, check_scale
from vlad.types import Layout
from vlad.utils.errors import UserError
from vlad.utils.paths import checked_path

Kind = Literal["pipeline", "vlad", "fine_tuned", "controlnet", "textdiffuser", "deepfloyd", "images", "pictures"]
BATCH = 4


@dataclass(frozen=True)
class Published:
    """The row's figures as they were published; None where a figure was not."""

    fid: float | None = None
    clip_score: float | None = None
    accuracy: float | None = None
    precision: float | None = None
    recall: float | None = None
    f_measure: float | None = None
    source: str = ""


@dataclass(frozen=True)
class Entry:
    """A row's YAML. None leaves a setting to the pipeline."""

    title: str = ""
    kind: Kind = "pipeline"
    path: str = ""
    controlnet: str | None = None
    unet: str | None = None
    # Folders of DeepFloyd's stages; empty: IF-I, IF-II and upscaler in `path`.
    stages: list[str] = field(default_factory=list)
    # The ControlNet's input: edges of the letters, or the glyph map itself.
    hint: Literal["edges", "glyphs"] = "edges"
    # A run or pipeline of ours whose stage one plans the layouts; None: centred rows.
    planner: str | None = None
    # A class of diffusers in place of the pipeline's own scheduler.
    scheduler: str | None = None
    steps: int | None = None
    text_scale: float | None = None
    layout_scale: float | None = None
    control_scale: float = 1.0
    pixels: int = 512
    batch_size: int = BATCH
    published: Published = field(default_factory=Published)

    def __post_init__(self) -> None:
        counts = [value for value in (self.steps, self.pixels, self.batch_size) if value is not None]
        if min(counts) < 1:
            raise UserError("An entry's steps, pixels and batch_size must be at least 1.")
        if self.pixels % PIXELS_PER_LATENT:
            raise UserError(f"An entry's pixels must be a multiple of {PIXELS_PER_LATENT}, not {self.pixels}.")
        for name in ("text_scale", "layout_scale"):
            if (value := getattr(self, name)) is not None:
                check_scale(name, value)
        if not 0 <= self.control_scale <= MOST_SCALE:
            raise UserError(
                f"control_scale must be from 0 to {MOST_SCALE:g}, not {self.control_scale:g}; 1 adds the ControlNet as"
                " it was trained."
            )

    @property
    def source(self) -> str:
        """Where the images come from: the entry's folders."""
        return ", ".join(self.stages) if self.kind == "deepfloyd" and self.stages else self.path


def load_entry(path: Path, overrides: Sequence[str] = ()) -> Entry:
    """The entry of a YAML file. Raises UserError with the place and the remedy."""
    entry = load_options(Entry, path, overrides)
    if entry.kind == "pictures":  # of version 0.1
        entry = replace(entry, kind="images")
    needed = {"controlnet": entry.controlnet, "textdiffuser": entry.unet}
    if not entry.path and not (entry.kind == "deepfloyd" and entry.stages):
        raise UserError(f"{path}: path names no model; set path=FOLDER.")
    if entry.kind in needed and not needed[entry.kind]:
        name = "unet" if entry.kind == "textdiffuser" else entry.kind
        raise UserError(f"{path}: an entry of kind {entry.kind} needs {name}; set {name}=FOLDER.")
    if entry.kind == "deepfloyd" and len(entry.stages) not in (0, 3):
        raise UserError(f"{path}: stages names {len(entry.stages)} folders; DeepFloyd IF has three stages.")
    if "" in entry.stages:
        raise UserError(f"{path}: stages names a folder that has no name; set stages=[IF-I,IF-II,UPSCALER].")
    if entry.planner == "":
        raise UserError(f"{path}: planner names no run; set planner=RUN, or leave it out.")
    return entry


def watermark_box(entry: Entry) -> Box | None:
    """The box of a watermark that must not be read; None where the images have none."""
    return WATERMARK if entry.kind == "deepfloyd" else None


def missing_model(entry: Entry) -> str | None:
    """Which folder of the entry is missing, as part of a sentence; None where all are present.

    Raises UserError for a name that no folder can have.
    """
    folders = [entry.path, *entry.stages] if entry.kind != "deepfloyd" else [*map(str, _stages(entry))]
    models = {"controlnet": entry.controlnet, "unet": entry.unet, "planner": entry.planner}
    named = [("stages" if entry.stages else "path", name) for name in folders]
    named += [(option, name) for option, name in models.items() if name is not None]
    missing = [name for option, name in named if not checked_path(name, option).is_dir()]
    what = "folder of images" if entry.kind == "images" else "model"
    return f"no {what} at {', '.join(missing)}" if missing else None


def generator_of(entry: Entry) -> Generator:
    """The entry's generator. Raises UserError for models that are missing or of another kind."""
    assert entry.kind != "images"
    if entry.kind in ("vlad", "fine_tuned"):
        folder = pipeline_folder(Path(entry.path))
        generator = VLADGenerator(folder, GenerationOptions(entry.steps, entry.text_scale, entry.layout_scale))
        if generator.takes_layouts == (entry.kind == "fine_tuned"):
            trained = "with" if generator.takes_layouts else "without"
            other = "layout.kind=none" if generator.takes_layouts else "layout.kind=latents"
            raise UserError(f"{entry.path} was trained {trained} a layout stage; name a run trained with {other}.")
        return generator
    if entry.kind == "pipeline":
        options = GenerationOptions(entry.steps, entry.text_scale, None, None, entry.pixels, entry.batch_size)
        if entry.scheduler is None:
            return build_generator(Path(entry.path), options)
        return DiffusersGenerator(Path(entry.path), options, entry.scheduler)
    if entry.kind == "deepfloyd":
        return DeepFloydGenerator(entry)
    return LayoutGenerator(entry)


def _stages(entry: Entry) -> list[Path]:
    return [Path(name) for name in entry.stages] or [Path(entry.path) / name for name in ("IF-I", "IF-II", "upscaler")]


class DeepFloydGenerator:
    """DeepFloyd IF, without layouts."""

    takes_layouts = False

    def __init__(self, entry: Entry) -> None:
        self.entry, self.batch_size = entry, entry.batch_size
        self.model = DeepFloydIF(_stages(entry), entry.steps, entry.text_scale)

    def settings(self) -> dict[str, Any]:
        """The digests of all stages, and the entry's settings."""
        return _settings(self.entry, _stages(self.entry))

    def refusal(self, prompt: BenchmarkPrompt, layout: Layout | None) -> str | None:
        """None: it takes every prompt."""
        return None

    def generate(
        self, prompts: Sequence[BenchmarkPrompt], seeds: Sequence[int], layouts: Sequence[Layout] | None
    ) -> list[tuple[Image.Image, Layout | None]]:
        """An image a prompt."""
        return [(image, None) for image in self.model.generate([prompt.text for prompt in prompts], seeds)]


class LayoutGenerator:
    """A model that takes layouts, ControlNet or TextDiffuser, with those of a planner or centred rows."""

    takes_layouts = True

    def __init__(self, entry: Entry) -> None:
        self.entry, self.batch_size = entry, entry.batch_size
        self.planner = None if entry.planner is None else load_pipeline(entry.planner)
        if self.planner is not None and self.planner.layout_unet is None:
            raise UserError(f"planner: {entry.planner} has no layout stage; name a run that has one.")
        self.model = _model_of(entry)

    def settings(self) -> dict[str, Any]:
        """The digests of all models, and the entry's settings."""
        named = (self.entry.path, self.entry.controlnet, self.entry.unet)
        folders = [Path(name) for name in named if name is not None]
        if self.entry.planner is not None:
            folders.append(pipeline_folder(Path(self.entry.planner)))
        return _settings(self.entry, folders)

    def refusal(self, prompt: BenchmarkPrompt, layout: Layout | None) -> str | None:
        """Why the planner refuses the prompt; None where it takes it."""
        if self.planner is None or layout is not None:
            return None
        try:
            self.planner.check_prompt(prompt.text)
        except UserError as error:
            return str(error)
        return None

    def generate(
        self, prompts: Sequence[BenchmarkPrompt], seeds: Sequence[int], layouts: Sequence[Layout] | None
    ) -> list[tuple[Image.Image, Layout | None]]:
        """An image a prompt, with its layout."""
        layouts = layouts or self._planned(prompts, seeds)
        images = self.model.generate([prompt.text for prompt in prompts], seeds, layouts)
        return list(zip(images, layouts, strict=True))

    def _planned(self, prompts: Sequence[BenchmarkPrompt], seeds: Sequence[int]) -> list[Layout]:
        """The layouts that the planner generates from these seeds; without one, centred rows."""
        if self.planner is None:
            return [centred_layout(prompt.strings) for prompt in prompts]
        parsed = [self.planner.check_prompt(prompt.text) for prompt in prompts]
        return [plan.layout for plan in self.planner.plan(parsed, seeds)]


def _model_of(entry: Entry) -> GlyphControlNet | TextDiffuser:
    steps, scale = entry.steps or 50, 7.5 if entry.text_scale is None else entry.text_scale
    if entry.unet is not None and entry.kind == "textdiffuser":
        return TextDiffuser(Path(entry.path), Path(entry.unet), entry.pixels, steps, scale, entry.scheduler)
    assert entry.controlnet is not None
    return GlyphControlNet(
        Path(entry.path),
        Path(entry.controlnet),
        entry.hint,
        entry.pixels,
        entry.scheduler,
        num_inference_steps=steps,
        guidance_scale=scale,
        controlnet_conditioning_scale=entry.control_scale,
    )


def _settings(entry: Entry, folders: Sequence[Path]) -> dict[str, Any]:
    """All that shapes an entry's images: its models by their digests, not their places."""
    settings = asdict(entry)
    for name in ("title", "published", "path", "controlnet", "unet", "stages"):
        settings.pop(name)
    planned = {} if entry.planner is None else {"planner": "a run"}
    return {**settings, **planned, "weights": "-".join(weights_digest(folder) for folder in folders)}
