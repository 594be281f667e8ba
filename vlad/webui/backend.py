"""Backend of the page: plans, images with their recipes, edits. One request at a time has the model."""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlad.inference.edit_requests import EditSource
from vlad.inference.generate import Sampler
from vlad.inference.input_images import open_image, pixels_fingerprint
from vlad.inference.options import parse_seeds
from vlad.inference.recipes import origin_of, recipe_to_json, save_image
from vlad.layout.image_edits import Edit, fit_lines_into_mask
from vlad.layout.masks import polygons_mask
from vlad.models.text_encoder.prompt import notes_on_quotations, parse_prompt, plain_prompt, wrap_strings
from vlad.pipeline.image_request import ImageRequest
from vlad.pipeline.options import SampleSettings
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.types import Layout, Prompt
from vlad.utils.errors import UserError
from vlad.utils.failures import user_errors
from vlad.utils.paths import writable_directory
from vlad.webui.canvas import CanvasState
from vlad.webui.canvas_prompt import prompt_of_canvas

MOST_IMAGES = 16  # of one request
MOST_STEPS = 200
MOST_LETTERS = 2000  # of a prompt
MOST_UPLOAD_BYTES, MOST_UPLOAD_PIXELS = 10_000_000, 4_000_000
KEPT_IMAGES = 1000  # files; the oldest are deleted first


@dataclass(frozen=True)
class Controls:
    """Values of the page's sliders; None leaves the model's own."""

    steps: int | None = None
    text_scale: float | None = None
    layout_scale: float | None = None


@dataclass(frozen=True)
class Result:
    """An image on disk and its recipe as plain JSON values."""

    path: Path
    recipe: dict[str, Any]


class Backend:
    """A pipeline that serves the page; its images go to `folder`."""

    def __init__(self, pipeline: VLADPipeline, run: str, folder: Path, adapters: Sequence[str] = ()) -> None:
        self.pipeline, self.folder = pipeline, writable_directory(folder, "images", needed_bytes=50_000_000)
        # The images that this page has generated, oldest first: the only files that it serves and removes.
        self.served: list[str] = []
        self.run = run
        self._lock = threading.Lock()
        self._origin = origin_of(pipeline, run, adapters)

    @property
    def edits(self) -> bool:
        """Whether the model edits images."""
        return bool(self.pipeline.config.edits)

    def plan(self, prompt: str, seeds: str) -> CanvasState:
        """The layout that stage one plans for a prompt, with the first of the seeds."""
        parsed = self._check_prompt(prompt)
        seed = parse_seeds(seeds or "0")[0]
        settings = self.pipeline.settings()
        if not self.pipeline.uses_layout:
            raise UserError("This model was trained without layouts (layout.kind: none) and plans none.")
        if not parsed.strings:
            raise UserError("The prompt quotes nothing; put what the image has to spell in quotation marks.")
        (plan,) = self._run(lambda: self.pipeline.plan([parsed], [seed], settings))
        return CanvasState(plan.layout, settings.width, settings.height, parsed.strings)

    def generate(
        self, prompt: str, canvas: CanvasState, seeds: str, controls: Controls
    ) -> tuple[list[Result], CanvasState]:
        """An image for each seed, and the canvas that belongs to the first of them.

        The canvas's lines are the layout. Stage one plans it where there are none, and where the prompt quotes other
        strings than the canvas was planned for.
        """
        settings = self._settings(controls)
        if canvas.layout.lines and self._belongs_to(canvas, prompt):
            request = self.pipeline.image_request(
                prompt_of_canvas(prompt, canvas.layout, self._max_characters), 0, canvas.layout
            )
            results, _ = self._generate(request, _parse_seeds(seeds), settings)
            strings = None if canvas.strings is None else request.prompt.strings
            return results, dataclasses.replace(canvas, strings=strings)
        request = self.pipeline.image_request(self._check_prompt(prompt), 0)
        results, layouts = self._generate(request, _parse_seeds(seeds), settings)
        return results, CanvasState(layouts[0], settings.width, settings.height, request.prompt.strings)

    def _belongs_to(self, canvas: CanvasState, prompt: str) -> bool:
        """Whether a canvas's lines are still those of the prompt."""
        _check_length(prompt)
        if canvas.strings is None or not prompt.strip():
            return True
        return wrap_strings(parse_prompt(prompt), self._max_characters).strings == canvas.strings

    def open_upload(self, path: str) -> Image.Image:
        """An uploaded image. Raises UserError for one that is too large, unreadable, or of a size the model lacks."""
        file = Path(path)
        if file.stat().st_size > MOST_UPLOAD_BYTES:
            raise UserError(f"The image has more than {MOST_UPLOAD_BYTES // 1_000_000} MB; make it smaller.")
        image = open_image(file, "The image", MOST_UPLOAD_PIXELS)
        self.pipeline.settings(width=image.width, height=image.height)
        return image

    def edit(self, path: str | None, canvas: CanvasState, prompt: str, seeds: str, controls: Controls) -> list[Result]:
        """An uploaded image with each box of the canvas generated anew: with its text, or without where it has none."""
        if not self.edits:
            raise UserError(
                "This model was not trained to edit images; start the page with one of refine.editing_share."
            )
        if path is None:
            raise UserError("Upload an image first.")
        if not canvas.layout.lines:
            raise UserError("Add a box where the image is to be generated anew.")
        image = np.asarray(self.open_upload(path))
        height, width = image.shape[:2]
        mask, lines = np.zeros((height, width), dtype=bool), []
        for box in canvas.layout.lines:
            own = polygons_mask([box.polygon], width, height)
            mask |= own
            if box.text.strip() and own.any():
                (line,) = fit_lines_into_mask([box.text.strip()], own).lines
                lines.append(dataclasses.replace(line, colour=box.colour, font=box.font))
        layout = Layout(tuple(lines))
        plain = plain_prompt([line.text for line in lines])
        text = (
            prompt_of_canvas(prompt if prompt.strip() else plain, layout, self._max_characters)
            if lines
            else prompt.strip() or plain
        )
        _check_length(text)
        request = self.pipeline.image_request(text, 0, layout, Edit(image, mask))
        # As `vlad sample --mask` takes them: --from finds the same mask where the image lies beside.
        boxes = tuple(",".join(str(float(value)) for value in np.ravel(box.polygon)) for box in canvas.layout.lines)
        source = EditSource(Path(path).name, boxes, pixels_fingerprint(image), pixels_fingerprint(mask))
        settings = self._settings(controls, width=width, height=height)
        return self._generate(request, _parse_seeds(seeds), settings, source)[0]

    @property
    def _max_characters(self) -> int:
        return int(self.pipeline.composition.config.max_characters)

    def notes(self, prompt: str) -> tuple[str, ...]:
        """How quotations of a prompt were read where there are two ways."""
        return notes_on_quotations(self._check_prompt(prompt)) if prompt.strip() else ()

    def _settings(self, controls: Controls, **size: int) -> SampleSettings:
        if controls.steps is not None and controls.steps > MOST_STEPS:
            raise UserError(f"{controls.steps} steps are too many for this page; {MOST_STEPS} are the most.")
        return self.pipeline.settings(**dataclasses.asdict(controls), **size)

    def _check_prompt(self, prompt: str) -> Prompt:
        _check_length(prompt)
        return self.pipeline.check_prompt(prompt)

    def _generate(
        self,
        request: ImageRequest,
        seeds: Sequence[int],
        settings: SampleSettings,
        source: EditSource | None = None,
    ) -> tuple[list[Result], list[Layout]]:
        # A few images are no reason to fill up a whole batch.
        settings = dataclasses.replace(settings, batch_size=min(settings.batch_size, len(seeds)))
        requests = [dataclasses.replace(request, seed=seed) for seed in seeds]
        output = self._run(lambda: self.pipeline.generate(requests, settings))
        sampler = Sampler(self.pipeline, settings, {**self._origin, "edit": source})
        results = []
        for named, image, layout in zip(requests, output.images, output.layouts, strict=True):
            recipe = sampler.recipe(named, layout, layout_given=request.layout is not None)
            path = self.folder / f"{uuid.uuid4().hex}.png"
            save_image(image, recipe, path)
            self.served.append(str(path.resolve()))
            results.append(Result(path, recipe_to_json(recipe)))
        self._prune()
        return results, output.layouts

    def _run(self, work: Any) -> Any:
        """Runs work on the model, one request at a time."""
        try:
            with self._lock, user_errors("The request ran", memory="ask for fewer seeds at once"):
                return work()
        except UserError:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            raise

    def _prune(self) -> None:
        """Removes the oldest of the images that this page has generated; whatever else the folder holds is not ours."""
        while len(self.served) > KEPT_IMAGES:
            Path(self.served.pop(0)).unlink(missing_ok=True)


def _check_length(prompt: str) -> None:
    if len(prompt) > MOST_LETTERS:
        raise UserError(f"The prompt has {len(prompt)} letters; {MOST_LETTERS} are the most.")


def _parse_seeds(text: str) -> tuple[int, ...]:
    seeds = parse_seeds(text if text.strip() else "0")
    if len(seeds) > MOST_IMAGES:
        raise UserError(f"{len(seeds)} seeds make as many images; {MOST_IMAGES} at once are the most.")
    return seeds
