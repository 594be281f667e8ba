"""What the page asks for, done: plans, images with their recipes, edits. One request at a time has the model."""

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
from vlad.inference.input_images import open_image, pixels_fingerprint
from vlad.inference.load_pipeline import model_fingerprint
from vlad.inference.prompt_requests import parse_seeds
from vlad.inference.recipes import Recipe, recipe_to_json, save_image
from vlad.layout.masks import Edit, lines_inside, mask_of_polygons
from vlad.models.text_encoder.prompt import parse_prompt, plain_prompt
from vlad.pipeline.options import SampleSettings
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.types import Layout
from vlad.utils.errors import UserError
from vlad.utils.failures import user_errors
from vlad.utils.paths import writable_directory
from vlad.webui.canvas import Drawn
from vlad.webui.canvas_prompt import prompt_of_canvas

MOST_IMAGES = 16  # of one request
MOST_STEPS = 200
MOST_LETTERS = 2000  # of a prompt
MOST_UPLOAD_BYTES, MOST_UPLOAD_PIXELS = 10_000_000, 4_000_000
KEPT_IMAGES = 1000  # files; the oldest go first


@dataclass(frozen=True)
class Controls:
    """What the page's sliders say; None leaves the model its own."""

    steps: int | None = None
    text_scale: float | None = None
    layout_scale: float | None = None


@dataclass(frozen=True)
class Result:
    """An image on disk and its recipe as plain JSON values."""

    path: Path
    recipe: dict[str, Any]


class Backend:
    """A pipeline at the page's service; its images lie in `folder`."""

    def __init__(self, pipeline: VLADPipeline, run: str, folder: Path, adapters: Sequence[str] = ()) -> None:
        self.pipeline, self.folder = pipeline, writable_directory(folder, "images", needed_bytes=50_000_000)
        self.run = run
        self._lock = threading.Lock()
        self._origin: dict[str, Any] = {
            "model": model_fingerprint(pipeline),
            "run": run,
            "adapters": tuple(adapters),
            "solvers": tuple(
                type(scheduler).__name__
                for scheduler in (pipeline.layout_scheduler, pipeline.refine_scheduler)
                if scheduler is not None
            ),
            "dtype": str(pipeline.refine_unet.dtype).removeprefix("torch."),
            "device": str(pipeline._execution_device),
        }

    @property
    def edits(self) -> bool:
        """Whether the model edits images."""
        return bool(self.pipeline.config.edits)

    def plan(self, prompt: str, seeds: str) -> Drawn:
        """Where stage one puts the words of a prompt, with the first of the seeds."""
        _check_prompt(prompt)
        seed = parse_seeds(seeds or "0")[0]
        settings = self.pipeline.settings()
        if not self.pipeline.uses_layout:
            raise UserError("This model was trained without layouts (layout.kind: none) and plans none.")
        parsed = self.pipeline.check_prompt(prompt)
        if not parsed.strings:
            raise UserError("The prompt quotes nothing; put what the image has to spell in quotation marks.")
        with self._lock:
            (plan,) = self._guarded(lambda: self.pipeline.plan([parsed], [seed], settings))
        return Drawn(plan.layout, settings.width, settings.height, parsed.strings)

    def draw(self, prompt: str, canvas: Drawn | None, seeds: str, controls: Controls) -> tuple[list[Result], Drawn]:
        """An image for each seed, and the canvas that belongs to the first of them.

        Of the canvas's lines; where it has none, or the prompt's strings are others than it was planned for, of what
        stage one plans.
        """
        _check_prompt(prompt)
        settings = self._settings(controls)
        if canvas is not None and canvas.layout.lines and self._is_of(canvas, prompt):
            wanted = prompt_of_canvas(prompt, canvas.layout)
            results, _ = self._draw(wanted, canvas.layout, _few_seeds(seeds), settings, None, None)
            said = None if canvas.said is None else parse_prompt(wanted).strings
            return results, dataclasses.replace(canvas, said=said)
        results, layouts = self._draw(prompt, None, _few_seeds(seeds), settings, None, None)
        strings = self.pipeline.check_prompt(prompt).strings
        return results, Drawn(layouts[0], settings.width, settings.height, strings)

    def _is_of(self, canvas: Drawn, prompt: str) -> bool:
        """Whether a canvas still belongs to a prompt."""
        return canvas.said is None or not prompt.strip() or parse_prompt(prompt).strings == canvas.said

    def open(self, path: str) -> Image.Image:
        """An uploaded image. Raises UserError for one that is too large, or none, or that the model cannot take."""
        file = Path(path)
        if file.stat().st_size > MOST_UPLOAD_BYTES:
            raise UserError(f"The image has more than {MOST_UPLOAD_BYTES // 1_000_000} MB; make it smaller.")
        image = open_image(file, "The image", MOST_UPLOAD_PIXELS)
        self.pipeline.settings(width=image.width, height=image.height)
        return image

    def edit(self, path: str | None, canvas: Drawn, prompt: str, seeds: str, controls: Controls) -> list[Result]:
        """An uploaded image with each box of the canvas drawn anew: with its text, or without where it has none."""
        if not self.edits:
            raise UserError(
                "This model was not trained to edit images; start the page with one of refine.editing_share."
            )
        if path is None:
            raise UserError("Upload an image first.")
        if not canvas.layout.lines:
            raise UserError("Add a box where the image is to be drawn anew.")
        image = np.asarray(self.open(path))
        height, width = image.shape[:2]
        mask, lines = np.zeros((height, width), dtype=bool), []
        for box in canvas.layout.lines:
            own = mask_of_polygons([box.polygon], width, height)
            mask |= own
            if box.text.strip() and own.any():
                (line,) = lines_inside([box.text.strip()], own).lines
                lines.append(dataclasses.replace(line, colour=box.colour, font=box.font))
        layout = Layout(tuple(lines))
        edit = Edit(image, mask)
        plain = plain_prompt([line.text for line in lines])
        wanted = prompt_of_canvas(prompt if prompt.strip() else plain, layout) if lines else prompt.strip() or plain
        _check_prompt(wanted)
        # As `sample.py --mask` takes them: --from finds the same mask where the image lies beside.
        boxes = tuple(",".join(str(float(value)) for value in np.ravel(box.polygon)) for box in canvas.layout.lines)
        source = EditSource(Path(path).name, boxes, pixels_fingerprint(image), pixels_fingerprint(mask))
        settings = self._settings(controls, width=width, height=height)
        return self._draw(wanted, layout, _few_seeds(seeds), settings, edit, source)[0]

    def _settings(self, controls: Controls, **size: int) -> SampleSettings:
        if controls.steps is not None and controls.steps > MOST_STEPS:
            raise UserError(f"{controls.steps} steps are too many for this page; {MOST_STEPS} are the most.")
        return self.pipeline.settings(**dataclasses.asdict(controls), **size)

    def _draw(
        self,
        prompt: str,
        layout: Layout | None,
        seeds: Sequence[int],
        settings: SampleSettings,
        edit: Edit | None,
        source: EditSource | None,
    ) -> tuple[list[Result], list[Layout]]:
        count = len(seeds)
        edited: dict[str, Any] = {} if edit is None else {"image": edit.image, "mask_image": edit.mask}
        self.pipeline.check_prompt(prompt, layout)
        # A few images are no reason to fill a whole batch up.
        settings = dataclasses.replace(settings, batch_size=min(settings.batch_size, count))
        options = dataclasses.asdict(settings)
        with self._lock:
            drawn = self._guarded(lambda: self.pipeline([prompt] * count, seeds, [layout] * count, **edited, **options))
        results = []
        for seed, image, found in zip(seeds, drawn.images, drawn.layouts, strict=True):
            recipe = Recipe(prompt, seed, found, layout is not None, settings, **self._origin, edit=source)
            path = self.folder / f"{uuid.uuid4().hex}.png"
            save_image(image, recipe, path)
            results.append(Result(path, recipe_to_json(recipe)))
        self._prune()
        return results, drawn.layouts

    def _guarded(self, work: Any) -> Any:
        try:
            with user_errors("The request ran", memory="ask for fewer seeds at once"):
                return work()
        except UserError:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            raise

    def _prune(self) -> None:
        files = sorted(self.folder.glob("*.png"), key=lambda file: file.stat().st_mtime)
        for file in files[: max(0, len(files) - KEPT_IMAGES)]:
            file.unlink(missing_ok=True)


def _check_prompt(prompt: str) -> None:
    if len(prompt) > MOST_LETTERS:
        raise UserError(f"The prompt has {len(prompt)} letters; {MOST_LETTERS} are the most.")


def _few_seeds(said: str) -> tuple[int, ...]:
    seeds = parse_seeds(said if said.strip() else "0")
    if len(seeds) > MOST_IMAGES:
        raise UserError(f"{len(seeds)} seeds make as many images; {MOST_IMAGES} at once are the most.")
    return seeds
