"""From requests to files: images, layouts, contact sheets and an index in one directory.

OUT/0000-a-blue-sign-that-says-house-s7.png        number of the prompt, its words, the seed; its recipe inside
OUT/layouts/0000-....json, 0000-....png            the layout between the stages: to edit, and to look at
OUT/layouts/0000-...-plan.png                      what stage one drew, before refit
OUT/grids/grid.png, grid-2.png ...                 prompts, layouts and images side by side, 32 a sheet
OUT/index.jsonl                                    a line an image: its files and its recipe
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from vlad.inference.prompt_requests import Refusal, Request
from vlad.inference.recipes import Recipe, read_recipe, recipe_to_json, save_image
from vlad.layout.layout_files import layout_as_it_is, layout_to_json, write_layout
from vlad.layout.masks import Edit
from vlad.models.text_encoder.prompt import nested_marks, quoted
from vlad.pipeline.options import SampleSettings
from vlad.pipeline.vlad_pipeline import Reader, VLADPipeline
from vlad.reports.image_grids import GridRow, draw_layout, image_of_map, overlay, sample_grid
from vlad.types import Layout
from vlad.utils.errors import UserError, counted
from vlad.utils.failures import user_errors
from vlad.utils.hardware import best_device
from vlad.utils.paths import writable_directory

SHEET_IMAGES = 32
OVERLAY_PIXELS = 256  # smaller images are enlarged under their polygons


@dataclass(frozen=True)
class Job:
    """One image to draw."""

    name: str
    prompt: str
    seed: int
    layout: Layout | None


@dataclass(frozen=True)
class DrawnSet:
    """What a call has made: the names of its images, and how many of them were there before."""

    names: tuple[str, ...]
    skipped: int


@dataclass(frozen=True)
class Drawer:
    """A pipeline with all that the images of one call share."""

    pipeline: VLADPipeline
    settings: SampleSettings
    # What every recipe of the call holds besides prompt, seed, layout and settings.
    origin: dict[str, Any]
    # Reads raw glyph maps, to keep those that are right; None: all are refitted.
    reader: Reader | None = None
    # An image of which every job draws a part anew.
    edit: Edit | None = None

    def recipe(self, job: Job, layout: Layout) -> Recipe:
        given = job.layout is not None
        return Recipe(
            job.prompt, job.seed, layout, given, self.settings, keep_raw=self.reader is not None, **self.origin
        )


def jobs_of(
    requests: Sequence[Request | Refusal], seeds: Sequence[int], layout: Layout | None, pipeline: VLADPipeline
) -> tuple[list[Job], list[Refusal]]:
    """A job for every seed of every prompt, and the requests that cannot be drawn, each with the reason.

    Names number the requests, refused ones too: a line that is mended later gets the place it would have had.
    """
    jobs, refused, apart, wordless = [], [], [], []
    for number, request in enumerate(requests):
        if isinstance(request, Refusal):
            refused.append(request)
            continue
        wanted = request.layout or layout
        try:
            prompt = pipeline.check_prompt(request.prompt, wanted)
        except UserError as error:
            refused.append(Refusal(request.place, str(error)))
            continue
        if wanted is not None and not says_the_same(wanted, prompt.strings):
            apart.append(_told_apart(request.place, wanted, prompt.strings))
        elif wanted is None and not prompt.strings:
            wordless.append(
                f"{request.place}: the prompt quotes nothing; put what the image has to spell in quotation marks."
            )
        for quote in nested_marks(prompt):
            print(f"The quotation marks inside {quote.text!r} are spelled like its letters.", file=sys.stderr)
        jobs += [
            Job(f"{number:04d}-{_slug(request.prompt)}-s{seed}", request.prompt, seed, wanted)
            for seed in request.seeds or seeds
        ]
    for told in (apart, wordless):
        if told:
            others = f" (and so for {len(told) - 1} more)" if len(told) > 1 else ""
            print(f"{told[0]}{others}", file=sys.stderr)
    return jobs, refused


def says_the_same(layout: Layout, strings: Sequence[str]) -> bool:
    """Whether a layout holds the words that a prompt quotes, in whatever order and lines."""
    return sorted(word for line in layout.lines for word in line.text.split()) == sorted(
        word for text in strings for word in text.split()
    )


def _told_apart(place: str, layout: Layout, strings: Sequence[str]) -> str:
    shown = " and ".join(quoted(line.text) for line in layout.lines)
    said = " and ".join(map(quoted, strings)) or "nothing"
    return f"{place}: the layout holds {shown} and the prompt quotes {said}; let both say the same."


def draw_to_directory(
    drawer: Drawer, jobs: Sequence[Job], out: Path, overwrite: bool = False, layout_only: bool = False
) -> DrawnSet:
    """Draws the jobs that are not there yet and writes what the module's head shows; with `layout_only` no images.

    Raises UserError for a directory that cannot be written, an image of another recipe under a name (unless
    `overwrite`), and when memory is out; what was drawn by then is kept.
    """
    pixels = drawer.settings.width * drawer.settings.height
    for folder in (out, out / "layouts", out / "grids"):
        writable_directory(folder, "images", needed_bytes=len(jobs) * pixels * 4)
    left = [job for job in jobs if overwrite or not _is_there(drawer, job, out, layout_only)]
    names = [job.name for job in jobs]
    index = _Index(out / "index.jsonl")
    size = drawer.settings.batch_size
    try:
        bar = tqdm(total=len(jobs), initial=len(jobs) - len(left), desc="sampling", unit="image")
        with bar, drawer.pipeline.reuse_conditioning():
            for start in range(0, len(left), size):
                chunk = left[start : start + size]
                with user_errors(f"{counted(size, 'image')} at once:", memory=_less_memory(size, index.added)):
                    _draw_chunk(drawer, chunk, out, index, layout_only)
                bar.update(len(chunk))
    finally:
        index.close(names)
    _write_sheets(out, jobs, layout_only)
    return DrawnSet(tuple(names), len(jobs) - len(left))


def _draw_chunk(drawer: Drawer, jobs: list[Job], out: Path, index: _Index, layout_only: bool) -> None:
    pipeline, settings = drawer.pipeline, drawer.settings
    prompts, seeds, given = [job.prompt for job in jobs], [job.seed for job in jobs], [job.layout for job in jobs]
    if layout_only:
        parsed = [pipeline.check_prompt(prompt) for prompt in prompts]
        plans = pipeline.plan(parsed, seeds, settings, given)
        for job, plan in zip(jobs, plans, strict=True):
            _write_layout_files(job.name, plan.layout, plan.glyph_map, None, settings, out)
        return
    edited: dict[str, Any] = {} if drawer.edit is None else {"image": drawer.edit.image, "mask_image": drawer.edit.mask}
    drawn = pipeline(prompts, seeds, given, reader=drawer.reader, **edited, **dataclasses.asdict(settings))
    for number, job in enumerate(jobs):
        layout, image = drawn.layouts[number], drawn.images[number]
        _write_layout_files(job.name, layout, drawn.glyph_maps[number], image, settings, out)
        recipe = drawer.recipe(job, layout)
        # Last: where the image is, all of it is.
        save_image(image, recipe, out / f"{job.name}.png")
        index.add({"image": f"{job.name}.png", "layout_file": f"layouts/{job.name}.json", **recipe_to_json(recipe)})


def _write_layout_files(
    name: str,
    layout: Layout,
    glyph_map: np.ndarray | None,
    image: Image.Image | None,
    settings: SampleSettings,
    out: Path,
) -> None:
    write_layout(layout, out / "layouts" / f"{name}.json")
    plan = _plan_file(out, name)
    # That of an image which is drawn over is no plan of this one.
    plan.unlink(missing_ok=True)
    if glyph_map is not None:
        image_of_map(glyph_map).save(plan)
    enlarge = max(1, round(OVERLAY_PIXELS / max(settings.width, settings.height)))
    size = settings.width * enlarge, settings.height * enlarge
    shown = draw_layout(layout, *size) if image is None else overlay(image.resize(size), layout)
    shown.save(out / "layouts" / f"{name}.png")


def _is_there(drawer: Drawer, job: Job, out: Path, layout_only: bool) -> bool:
    """Whether the job was drawn before. Raises UserError when its name belongs to another image."""
    if layout_only:
        path = out / "layouts" / f"{job.name}.json"
        if not path.is_file():
            return False
        # One that was predicted somebody may have edited; one that is given must be the one that is there.
        if job.layout is not None and not _holds(path, job.layout):
            raise UserError(f"{path} is another layout; add --overwrite to replace it, or name another --out.")
        return True
    path = out / f"{job.name}.png"
    if not path.is_file():
        return False
    before = read_recipe(path).asks_for()
    now = drawer.recipe(job, job.layout or Layout(())).asks_for()
    differing = _differing(before, now)
    if differing:
        raise UserError(
            f"{path} was drawn from another recipe ({', '.join(differing)}); add --overwrite to replace it, or name"
            " another directory with --out."
        )
    return True


def _holds(path: Path, layout: Layout) -> bool:
    """Whether a layout file, which a person may have broken, is this layout's."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")) == layout_to_json(layout))
    except ValueError:
        return False


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What two recipes differ in, with both values of the settings."""
    settings = before.get("settings", {}), now.get("settings", {})
    found = [
        f"{name} was {settings[0].get(name)} and is now {value}"
        for name, value in settings[1].items()
        if settings[0].get(name) != value
    ]
    names = sorted((before.keys() | now.keys()) - {"settings"})
    return found + [f"another {name}" for name in names if before.get(name) != now.get(name)]


def _less_memory(size: int, kept: int) -> str:
    """What to do when `size` images at once are too many; `kept` are written already."""
    smaller = f"--batch-size {size // 2}" if size > 1 else "a smaller --size"
    offload = ", or --offload," if best_device().type != "cpu" else ""
    return (
        f"{counted(kept, 'image')} kept; give {smaller}{offload} and --overwrite or another --out: images depend on"
        " the batch size in their last bit"
    )


class _Index:
    """index.jsonl: lines are added as images are drawn; at the end each image has one, in order."""

    def __init__(self, path: Path) -> None:
        self.path, self.added = path, 0
        self._stream = path.open("a", encoding="utf-8")

    def add(self, entry: dict[str, Any]) -> None:
        self._stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._stream.flush()
        self.added += 1

    def close(self, names: Sequence[str]) -> None:
        """Leaves the newest line of every image that is there, and of this call's images those that miss one."""
        self._stream.close()
        entries: dict[str, str] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                image = entry["image"] if "image" in entry else entry["picture"]  # version 0.1's name
            except (ValueError, KeyError, TypeError):  # cut short by a kill
                continue
            if (self.path.parent / image).is_file():
                entries[image] = line
        for name in names:
            path = self.path.parent / f"{name}.png"
            if path.name not in entries and path.is_file():
                entry = {"image": path.name, "layout_file": f"layouts/{name}.json"}
                entries[path.name] = json.dumps({**entry, **recipe_to_json(read_recipe(path))}, ensure_ascii=False)
        temporary = self.path.with_suffix(".partial")
        temporary.write_text("".join(f"{entries[name]}\n" for name in sorted(entries)), encoding="utf-8")
        temporary.replace(self.path)


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]


def _write_sheets(out: Path, jobs: Sequence[Job], layout_only: bool) -> None:
    """Contact sheets of the call's images, from their files; raw plans only where stage one drew some."""
    for page, start in enumerate(range(0, len(jobs), SHEET_IMAGES), start=1):
        shown = jobs[start : start + SHEET_IMAGES]
        has_plans = any(_plan_file(out, job.name).is_file() for job in shown)
        rows = [_row(out, job, layout_only, has_plans) for job in shown]
        heads = ["raw plan"] * has_plans + ["layout"] + ["image"] * (not layout_only)
        sheet = sample_grid(rows, heads, cell_pixels=128)
        sheet.save(out / "grids" / (f"grid-{page}.png" if page > 1 else "grid.png"))


def _row(out: Path, job: Job, layout_only: bool, has_plans: bool) -> GridRow:
    image = None if layout_only else _opened(out / f"{job.name}.png")
    if image is None:
        layout = layout_as_it_is(out / "layouts" / f"{job.name}.json")
        width, height = _opened(out / "layouts" / f"{job.name}.png").size
    else:
        # The one that the image was drawn from: the file may have been edited since.
        layout = read_recipe(out / f"{job.name}.png").layout
        width, height = image.size
    shown = [draw_layout(layout, width, height)]
    if has_plans:
        plan = _plan_file(out, job.name)
        shown.insert(0, _opened(plan) if plan.is_file() else Image.new("RGB", (width, height), "white"))
    return GridRow(f"{job.prompt} ({job.seed})", (*shown, image) if image is not None else tuple(shown))


def _plan_file(out: Path, name: str) -> Path:
    return out / "layouts" / f"{name}-plan.png"


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
