"""Generators of benchmark images: a run or pipeline of ours, or any text-to-image pipeline of diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlad.eval.generators.generator import Generator, weights_digest
from vlad.eval.generators.text_to_image import TextToImage
from vlad.eval.options import GenerationOptions
from vlad.eval.protocols.protocol import BenchmarkPrompt
from vlad.inference.load_pipeline import load_pipeline
from vlad.pipeline.folders import pipeline_class, pipeline_folder
from vlad.types import Layout
from vlad.utils.errors import UserError

OURS = "VLADPipeline"
DIFFUSERS_BATCH = 4


def build_generator(target: Path, options: GenerationOptions) -> Generator:
    """The generator of a run or pipeline folder. Raises UserError where there is none or options do not fit."""
    folder = pipeline_folder(target)
    if pipeline_class(folder) == OURS:
        if options.pixels is not None or options.batch_size is not None:
            raise UserError("--pixels and --batch-size are not for a VLADPipeline; leave them out.")
        return VLADGenerator(folder, options)
    if options.layout_scale is not None or options.refit is not None:
        raise UserError(f"--layout-scale and --no-refit are for a VLADPipeline, and {target} holds another.")
    return DiffusersGenerator(folder, options)


class VLADGenerator:
    """A VLADPipeline; images come with the layouts between the stages."""

    def __init__(self, folder: Path, options: GenerationOptions) -> None:
        self.folder, self.options = folder, options
        self.pipeline = load_pipeline(folder)
        self.pipeline.settings(  # raises here what it would raise at the first image
            steps=options.steps, text_scale=options.text_scale, layout_scale=options.layout_scale
        )
        self.batch_size = self.pipeline.config.batch_size
        self.takes_layouts = self.pipeline.uses_layout

    def settings(self) -> dict[str, Any]:
        """The digest of the weights, and the settings with the pipeline's own defaults."""
        config, options = self.pipeline.config, self.options
        return {
            "pipeline": OURS,
            "weights": weights_digest(self.folder),
            "pixels": config.image_pixels,
            "steps": options.steps or config.steps,
            "text_scale": config.text_scale if options.text_scale is None else options.text_scale,
            "layout_scale": config.layout_scale if options.layout_scale is None else options.layout_scale,
            "refit": config.refit if options.refit is None else options.refit,
        }

    def refusal(self, prompt: BenchmarkPrompt, layout: Layout | None) -> str | None:
        """Why the pipeline refuses the prompt; None where it takes it."""
        try:
            self.pipeline.check_prompt(prompt.text, layout)
        except UserError as error:
            return str(error)
        return None

    def generate(
        self, prompts: Sequence[BenchmarkPrompt], seeds: Sequence[int], layouts: Sequence[Layout] | None
    ) -> list[tuple[Image.Image, Layout | None]]:
        """An image a prompt, with its layout."""
        options = self.options
        output = self.pipeline(
            [prompt.text for prompt in prompts],
            list(seeds),
            layouts,
            options.steps,
            options.text_scale,
            options.layout_scale,
            options.refit,
        )
        return list(zip(output.images, output.layouts, strict=True))


class DiffusersGenerator:
    """A text-to-image pipeline of diffusers, without layouts."""

    takes_layouts = False

    def __init__(self, folder: Path, options: GenerationOptions, scheduler: str | None = None) -> None:
        """`scheduler` names a class of diffusers that replaces the pipeline's own."""
        self.folder, self.options = folder, options
        self.batch_size = options.batch_size or DIFFUSERS_BATCH
        self.scheduler = {} if scheduler is None else {"scheduler": scheduler}
        self.text_to_image = TextToImage(folder, options.steps, options.text_scale, options.pixels, scheduler)

    def settings(self) -> dict[str, Any]:
        """The digest of the weights, and the arguments of the call."""
        return {
            "pipeline": self.text_to_image.name,
            "weights": weights_digest(self.folder),
            # On most devices the last bits depend on the batch size.
            "batch_size": self.batch_size,
            **self.scheduler,
            **self.text_to_image.arguments,
        }

    def refusal(self, prompt: BenchmarkPrompt, layout: Layout | None) -> str | None:
        """None: such a pipeline takes every prompt."""
        return None

    def generate(
        self, prompts: Sequence[BenchmarkPrompt], seeds: Sequence[int], layouts: Sequence[Layout] | None
    ) -> list[tuple[Image.Image, Layout | None]]:
        """An image a prompt."""
        images = self.text_to_image.generate([prompt.text for prompt in prompts], seeds)
        return [(image, None) for image in images]
