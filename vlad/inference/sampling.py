"""`vlad sample`: reads prompts, layouts and edits, loads the model, generates, writes.

What can be checked without a model is checked before one is loaded.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from vlad.inference.edit_requests import EditRequest, read_edit, repeated_edit
from vlad.inference.generate import Sampler, generate_into, name_requests
from vlad.inference.input_images import read_image
from vlad.inference.load_pipeline import load_pipeline
from vlad.inference.options import SampleCall
from vlad.inference.output_directory import OutputDirectory
from vlad.inference.prompt_requests import PromptRequest, RejectedPrompt, read_prompts
from vlad.inference.recipes import Recipe, origin_of, read_recipe
from vlad.layout.layout_files import check_layout, read_layout
from vlad.layout.planner_lines import parse_line_options, read_planner_file
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.pipeline.options import nearest_side
from vlad.pipeline.vlad_pipeline import Reader, VLADPipeline
from vlad.types import Layout
from vlad.utils.errors import UserError, counted


@dataclass(frozen=True)
class Inputs:
    """What a call gives beside the model: all that can be read before one is loaded."""

    prompts: list[PromptRequest | RejectedPrompt]
    # For prompts without their own.
    seeds: tuple[int, ...]
    layout: Layout | None
    edit: EditRequest | None


def sample(call: SampleCall) -> int:
    """Generates what is asked for; returns the exit code: 2 where some prompts were rejected.

    Raises UserError when nothing can be generated.
    """
    recipe = read_recipe(call.repeat) if call.repeat else None
    inputs = read_inputs(call, recipe)
    sampler = load_sampler(call, recipe, inputs.edit)
    edit = inputs.edit.edit if inputs.edit else None
    requests, rejected = name_requests(inputs.prompts, inputs.seeds, inputs.layout, edit, sampler.pipeline)
    if not requests:
        raise UserError(str(rejected[0]))
    for prompt in rejected:
        print(f"error: {prompt}", file=sys.stderr)
    if call.layout_only and not sampler.pipeline.uses_layout:
        raise UserError("This model was trained without layouts (layout.kind: none) and plans none.")

    out = OutputDirectory(call.out, 4 * len(requests) * sampler.settings.width * sampler.settings.height)
    existing = generate_into(out, sampler, requests, call.overwrite, call.layout_only)
    _print_summary(call, len(requests), existing)
    if call.repeat is not None:
        _print_comparison(Path(call.repeat), out.image_file(requests[0].name))
    if rejected:
        print(f"{len(rejected)} of {len(inputs.prompts)} prompts were rejected: see above.", file=sys.stderr)
    return 2 if rejected else 0


def read_inputs(call: SampleCall, recipe: Recipe | None) -> Inputs:
    """Prompts, seeds, layout and edit of a call; what it leaves open is the repeated image's."""
    own_prompt = (recipe is not None or call.edit is not None) and not (call.prompts or call.prompt_files)
    prompts = [] if own_prompt else read_prompts(call.prompts, call.prompt_files)
    edit = _read_edit(call, recipe, prompts)
    if own_prompt:
        text = recipe.prompt if recipe is not None else edit.prompt if edit is not None else ""
        prompts = [PromptRequest(parse_prompt(text), "--prompt")]
    layout = edit.layout if edit is not None else _read_layout(call, recipe)
    return Inputs(prompts, call.seeds or ((recipe.seed,) if recipe is not None else (0,)), layout, edit)


def _read_edit(
    call: SampleCall, recipe: Recipe | None, prompts: list[PromptRequest | RejectedPrompt]
) -> EditRequest | None:
    """The image to edit, of this call or of the repeated image's."""
    source = None if recipe is None else recipe.edit
    if call.edit is None and source is None:
        if call.masks:
            raise UserError("--mask says which part of an image to generate anew; name the image with --edit.")
        return None
    excluded = {
        "--template": call.template,
        "--size": "width" in call.settings,
        "--aspect": call.aspect,
        "--layout-only": call.layout_only,
        "--keep-raw": call.keep_raw,
        "--no-refit": "refit" in call.settings,
    }
    for name, given in excluded.items():
        if given:
            raise UserError(f"{name} says nothing of an image that is edited; leave it out.")
    if call.edit is not None:
        strings = any(isinstance(prompt, PromptRequest) and prompt.prompt.strings for prompt in prompts)
        placed = _read_layout(call, None) if call.layout_file else None
        return read_edit(call.edit, call.masks, call.lines, placed, strings)
    assert recipe is not None and source is not None
    edit = repeated_edit(source, recipe.layout, call.masks)
    layout = _read_layout(call, recipe) or recipe.layout
    return EditRequest(edit, layout, recipe.prompt, replace(source, masks=call.masks or source.masks))


def _read_layout(call: SampleCall, recipe: Recipe | None) -> Layout | None:
    """The layout for every prompt: a file's, lines', a template's, or the repeated image's if that was given one."""
    if call.template:
        return read_template(call.template)
    if call.layout_file:
        is_planner = Path(call.layout_file).suffix == ".txt"
        return read_planner_file(call.layout_file) if is_planner else read_layout(call.layout_file)
    if call.lines:
        layout = parse_line_options(call.lines)
        check_layout(layout, "--line")
        return layout
    return recipe.layout if recipe is not None and recipe.layout_given else None


def read_template(path: str) -> Layout:
    """The text that the OCR engine reads in an image, and its places. Raises UserError for an image without text."""
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


def load_sampler(call: SampleCall, recipe: Recipe | None, edit: EditRequest | None) -> Sampler:
    """The model with its settings: the call's, else those of the repeated image, else the model's own."""
    run = call.run or (recipe.run if recipe is not None else None)
    if run is None:
        raise UserError("Name the run or pipeline to sample from: sample.py RUN --prompt ...")
    adapters = call.adapters or (recipe.adapters if recipe is not None else ())
    dtype = call.dtype or (recipe.dtype if recipe is not None else "float32")
    # An image may come from anyone: the model that it names is used where it is on this machine, and not fetched.
    pipeline = load_pipeline(
        run, adapters, dtype, call.offload, call.channels_last, call.compiled, may_download=call.run is not None
    )
    if call.solver:
        pipeline.use_solver(call.solver)
    elif recipe is not None:
        _use_solvers(pipeline, recipe.solvers)
    origin = origin_of(pipeline, run, adapters, None if edit is None else edit.source)
    if recipe is not None and recipe.model != origin["model"]:
        raise UserError(
            f"{call.repeat} was generated by another model ({recipe.model}, from {recipe.run}) than {run}"
            f" ({origin['model']}); name the one that generated it: sample.py RUN --from {call.repeat}."
        )
    settings = {} if recipe is None else dict(vars(recipe.settings))
    settings |= call.settings
    if call.aspect is not None:
        settings["width"], settings["height"] = _size_of(call.aspect, pipeline)
    if edit is not None:
        settings["height"], settings["width"] = edit.edit.mask.shape
    keep_raw = call.keep_raw or (recipe is not None and recipe.keep_raw)
    return Sampler(pipeline, pipeline.settings(**settings), origin, _ocr_reader() if keep_raw else None)


def _use_solvers(pipeline: VLADPipeline, classes: tuple[str, ...]) -> None:
    """The solvers of a recipe, by class. Raises UserError for those that --solver cannot set."""
    from vlad.diffusion.solvers import SOLVERS

    schedulers = (pipeline.layout_scheduler, pipeline.refine_scheduler)
    if tuple(type(scheduler).__name__ for scheduler in schedulers if scheduler is not None) == classes:
        return
    names = {solver.__name__: name for name, solver in SOLVERS.items()}
    if len(set(classes)) != 1 or classes[0] not in names:
        raise UserError(f"The image was generated with solvers that sample.py does not set: {', '.join(classes)}.")
    pipeline.use_solver(names[classes[0]])


def _size_of(aspect: float, pipeline: VLADPipeline) -> tuple[int, int]:
    """Width and height of a ratio, with about as many pixels as the model's own size."""
    side, unit, root = pipeline.config.image_pixels, pipeline.size_unit, aspect**0.5
    return nearest_side(side * root, unit), nearest_side(side / root, unit)


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


def _print_summary(call: SampleCall, count: int, existing: int) -> None:
    made = counted(count, "layout" if call.layout_only else "image")
    kept = f"{existing} of them existed" if count > 1 else "it existed"
    before = f" ({kept} before)" if existing else ""
    out = call.out
    print(f"{made} in {out}{before}, layouts in {out / 'layouts'}, on one page: {out / 'grids/grid.png'}")


def _print_comparison(before: Path, now: Path) -> None:
    """Says whether a repeated image equals the one it repeats."""
    with Image.open(before) as first, Image.open(now) as second:
        same = np.array_equal(np.asarray(first.convert("RGB")), np.asarray(second.convert("RGB")))
    print(f"{now} {'equals' if same else 'differs from'} {before}{', pixel for pixel' if same else ''}.")
