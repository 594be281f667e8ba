"""What `sample.py` does with its options."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlad.inference.edit_requests import EditRequest, read_edit, repeated_edit
from vlad.inference.generate import Drawer, draw_to_directory, jobs_of
from vlad.inference.input_images import read_image
from vlad.inference.load_pipeline import load_pipeline, model_fingerprint
from vlad.inference.prompt_requests import Refusal, Request, parse_seeds, read_requests
from vlad.inference.recipes import Recipe, read_recipe
from vlad.layout.layout_files import check_layout, read_layout
from vlad.layout.masks import Edit
from vlad.layout.planner_lines import layout_of_lines, read_planner
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.pipeline.options import SampleSettings, check_scale, nearest_side
from vlad.pipeline.vlad_pipeline import Reader, VLADPipeline
from vlad.types import Layout
from vlad.utils.errors import UserError


def sample(arguments: argparse.Namespace) -> int:
    """Draws what is asked for; returns the exit code: 2 when a part of it could not be drawn.

    Raises UserError, before a model is loaded where that can be seen, when nothing can be drawn.
    """
    for name in ("text_scale", "layout_scale", "planning_scale"):
        if getattr(arguments, name) is not None:
            check_scale(f"--{name.replace('_', '-')}", getattr(arguments, name))
    repeated = read_recipe(arguments.repeat) if arguments.repeat else None
    asked = _edit(arguments, repeated)
    requests = _requests(arguments, repeated, asked)
    layout = _layout(arguments, repeated) if asked is None else asked.layout
    seeds = (
        parse_seeds(arguments.seed, "--seed: ") if arguments.seed is not None else (repeated.seed if repeated else 0,)
    )
    run = arguments.run or (repeated.run if repeated else None)
    if run is None:
        raise UserError("Name the run or pipeline that draws: sample.py RUN --prompt ...")
    adapters = arguments.adapter or (list(repeated.adapters) if repeated else [])
    dtype = arguments.dtype or (repeated.dtype if repeated else "float32")
    pipeline = load_pipeline(run, adapters, dtype, arguments.offload, arguments.channels_last, arguments.compile)
    if arguments.solver:
        pipeline.use_solver(arguments.solver)
    elif repeated is not None:
        _use_solvers(pipeline, repeated)
    drawer = _drawer(pipeline, arguments, run, adapters, dtype, repeated, asked)
    jobs, refused = jobs_of(requests, seeds, layout, pipeline)
    if not jobs:
        raise UserError(_told(refused[0]))
    for refusal in refused:
        print(f"error: {_told(refusal)}", file=sys.stderr)
    if arguments.layout_only and not pipeline.uses_layout:
        raise UserError("This model was trained without layouts (layout.kind: none) and plans none.")
    out = Path(arguments.out)
    drawn = draw_to_directory(drawer, jobs, out, arguments.overwrite, arguments.layout_only)
    made = f"{len(jobs)} {'layout' if arguments.layout_only else 'image'}{'s' if len(jobs) > 1 else ''}"
    kept = f"{drawn.skipped} of them were" if len(jobs) > 1 else "it was"
    before = f" ({kept} there before)" if drawn.skipped else ""
    print(f"{made} in {out}{before}, layouts in {out / 'layouts'}, on one page: {out / 'grids/grid.png'}")
    if repeated is not None:
        _compare(Path(arguments.repeat), out / f"{drawn.names[0]}.png")
    if refused:
        print(f"{len(refused)} of {len(requests)} prompts could not be drawn: see above.", file=sys.stderr)
    return 2 if refused else 0


def _told(refusal: Refusal) -> str:
    return refusal.reason if refusal.place == "--prompt" else f"{refusal.place}: {refusal.reason}"


def _edit(arguments: argparse.Namespace, repeated: Recipe | None) -> EditRequest | None:
    """The image to edit, of this call or of the repeated image's."""
    source = None if repeated is None else repeated.edit
    if not arguments.edit and source is None:
        if arguments.mask:
            raise UserError("--mask says which part of an image is drawn anew; name the image with --edit.")
        return None
    for name in ("template", "size", "aspect", "layout_only", "keep_raw", "no_refit"):
        if getattr(arguments, name):
            raise UserError(f"--{name.replace('_', '-')} says nothing of an image that is edited; leave it out.")
    if arguments.edit:
        lines, file = arguments.line or [], arguments.layout
        if lines and file:
            raise UserError("--layout and --line all say where the words go; give one of them.")
        placed = _layout(arguments, None) if file else None
        has_prompt = bool(arguments.prompts) or any(parse_prompt(prompt).strings for prompt in arguments.prompt)
        return read_edit(arguments.edit, arguments.mask, lines, placed, has_prompt)
    assert repeated is not None and source is not None
    layout = _layout(arguments, repeated) or repeated.layout
    edit = repeated_edit(source, repeated.layout, arguments.mask)
    return EditRequest(edit, layout, repeated.prompt, replace(source, masks=tuple(arguments.mask) or source.masks))


def _requests(
    arguments: argparse.Namespace, repeated: Recipe | None, asked: EditRequest | None
) -> list[Request | Refusal]:
    """What is asked for. Raises UserError when none of it is a prompt: nothing needs to be loaded then."""
    if not (arguments.prompt or arguments.prompts):
        if repeated is not None:
            return [Request(repeated.prompt, "--from")]
        if asked is not None:
            return [Request(asked.prompt, "--edit")]
    requests = read_requests(arguments.prompt, arguments.prompts)
    checked: list[Request | Refusal] = []
    for request in requests:
        try:
            if isinstance(request, Request):
                parse_prompt(request.prompt)
            checked.append(request)
        except UserError as error:
            checked.append(Refusal(request.place, str(error)))
    if isinstance(checked[0], Refusal) and all(isinstance(request, Refusal) for request in checked):
        raise UserError(_told(checked[0]))
    return checked


def _layout(arguments: argparse.Namespace, repeated: Recipe | None) -> Layout | None:
    """The layout for every prompt: a file's, lines of the command line, or the repeated image's if that was given."""
    given = [f"--{name}" for name in ("layout", "line", "template") if getattr(arguments, name)]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} all say where the words go; give one of them.")
    if arguments.template:
        return template_layout(arguments.template)
    if arguments.layout:
        is_planner = Path(arguments.layout).suffix == ".txt"
        return read_planner(arguments.layout) if is_planner else read_layout(arguments.layout)
    if arguments.line:
        layout = layout_of_lines(arguments.line)
        check_layout(layout, "--line")
        return layout
    return repeated.layout if repeated is not None and repeated.layout_given else None


def _drawer(
    pipeline: VLADPipeline,
    arguments: argparse.Namespace,
    run: str,
    adapters: list[str],
    dtype: str,
    repeated: Recipe | None,
    asked: EditRequest | None,
) -> Drawer:
    model = model_fingerprint(pipeline)
    if repeated is not None and repeated.model != model:
        raise UserError(
            f"{arguments.repeat} was drawn by another model ({repeated.model}, from {repeated.run}) than {run}"
            f" ({model}); name the one that drew it: sample.py RUN --from {arguments.repeat}."
        )
    keep_raw = arguments.keep_raw or (repeated is not None and repeated.keep_raw)
    origin = {
        "model": model,
        "run": str(run),
        "adapters": tuple(adapters),
        "solvers": tuple(type(scheduler).__name__ for scheduler in _schedulers(pipeline).values()),
        "dtype": dtype,
        "device": str(pipeline._execution_device),
        "edit": None if asked is None else asked.source,
    }
    edit = None if asked is None else asked.edit
    settings = _settings(pipeline, arguments, repeated.settings if repeated else None, edit)
    return Drawer(pipeline, settings, origin, _ocr_reader() if keep_raw else None, edit)


def _settings(
    pipeline: VLADPipeline, arguments: argparse.Namespace, before: SampleSettings | None, edit: Edit | None
) -> SampleSettings:
    """The settings of the call: its options, else those of the repeated image, else the pipeline's own."""
    given: dict[str, Any] = {} if before is None else dict(vars(before))
    names = (
        "steps",
        "text_scale",
        "layout_scale",
        "planning_scale",
        "guidance_rescale",
        "negative_prompt",
        "batch_size",
    )
    given |= {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.no_refit:
        given["refit"] = False
    if arguments.size and arguments.aspect:
        raise UserError("--size and --aspect both say what shape the images have; give one of the two.")
    if arguments.size:
        given["width"], given["height"] = parse_size(arguments.size)
    elif arguments.aspect:
        given["width"], given["height"] = parse_aspect(arguments.aspect, pipeline)
    if edit is not None:
        given["height"], given["width"] = edit.mask.shape
    return pipeline.settings(**given)


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of "96x64", or of "96" for a square. Raises UserError for what is neither."""
    match = re.fullmatch(r"\s*(\d{1,5})\s*(?:[xX×*]\s*(\d{1,5})\s*)?", text)
    if match is None:
        raise UserError(f"{text!r} is no size; write WIDTHxHEIGHT in pixels, like 96x64.")
    return int(match.group(1)), int(match.group(2) or match.group(1))


def parse_aspect(text: str, pipeline: VLADPipeline) -> tuple[int, int]:
    """Width and height of "3:2", about as many pixels as the model's own size. Raises UserError for what is none."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*[:/]\s*(\d+(?:\.\d+)?)\s*", text)
    width, height = (float(match.group(1)), float(match.group(2))) if match else (0.0, 0.0)
    if not (width > 0 and height > 0 and 1 / 8 <= width / height <= 8):
        raise UserError(f"{text!r} is no aspect ratio; write WIDTH:HEIGHT, like 3:2, from 1:8 to 8:1.")
    side, unit = pipeline.config.image_pixels, pipeline.size_unit
    root = (width / height) ** 0.5
    return nearest_side(side * root, unit), nearest_side(side / root, unit)


def _schedulers(pipeline: VLADPipeline) -> dict[str, Any]:
    found = {name: getattr(pipeline, name) for name in ("layout_scheduler", "refine_scheduler")}
    return {name: scheduler for name, scheduler in found.items() if scheduler is not None}


def _use_solvers(pipeline: VLADPipeline, recipe: Recipe) -> None:
    """The solvers of a recipe. Raises UserError for one that we don't build."""
    from vlad.diffusion.solvers import SOLVERS

    names = {solver.__name__: name for name, solver in SOLVERS.items()}
    now = tuple(type(scheduler).__name__ for scheduler in _schedulers(pipeline).values())
    if now == recipe.solvers:
        return
    if len(set(recipe.solvers)) != 1 or recipe.solvers[0] not in names:
        raise UserError(f"The image was drawn by solvers that sample.py does not set: {', '.join(recipe.solvers)}.")
    pipeline.use_solver(names[recipe.solvers[0]])


def _ocr_reader() -> Reader:
    """Reads a glyph map with the OCR engine that comes with vlad."""
    from vlad.layout.reading_order import reading_order
    from vlad.metrics.ocr import ENLARGE_FACTOR, build_ocr_engine, enlarge

    engine = build_ocr_engine("rapidocr")

    def read(glyph_map: np.ndarray) -> list[str]:
        ink = (255 - np.clip(glyph_map, 0, 1) * 255).astype(np.uint8)
        image = np.repeat(ink[..., None], 3, axis=2)
        factor = ENLARGE_FACTOR if max(ink.shape) <= 256 else 1
        return [line.text for line in reading_order(engine.read(enlarge(image, factor)))]

    return read


def template_layout(path: str) -> Layout:
    """The text that the OCR engine reads in an image, where it stands. Raises UserError for no image, or no text."""
    from vlad.layout.reading_order import reading_order
    from vlad.metrics.ocr import build_ocr_engine

    image = read_image(path)
    lines = reading_order(build_ocr_engine("rapidocr").read(np.asarray(image)))
    if not lines:
        raise UserError(f"rapidocr finds no text in {path}; give an image with legible text, or a --layout.")
    inside = [tuple((min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)) for x, y in line.polygon) for line in lines]
    layout = Layout(tuple(replace(line, polygon=polygon) for line, polygon in zip(lines, inside, strict=True)))
    check_layout(layout, path)
    return layout


def _compare(before: Path, now: Path) -> None:
    """Says whether a repeated image is the one it repeats."""
    with Image.open(before) as first, Image.open(now) as second:
        same = np.array_equal(np.asarray(first.convert("RGB")), np.asarray(second.convert("RGB")))
    print(f"{now} {'equals' if same else 'differs from'} {before}{', pixel for pixel' if same else ''}.")
