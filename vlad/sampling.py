"""From prompts to files: pictures, layouts and a grid in one directory.

OUT/0000-a-blue-sign-that-says-house.png      one picture a prompt; sorting the names gives the prompts' order
OUT/layouts/0000-....json, 0000-....png       the layout between the stages: to edit, and to look at
OUT/grids/grid.png                            prompts, layouts and pictures side by side
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from vlad.building import pipeline_folder
from vlad.errors import UserError, existing_file, writable_directory
from vlad.evaluation.report import GridRow, draw_layout, overlay, picture_of_map, sample_grid
from vlad.layout.files import layout_to_json, write_layout
from vlad.pipeline import VLADPipeline, VLADPipelineOutput
from vlad.records import Layout
from vlad.text.lora import load_adapter
from vlad.text.prompt import nested_marks

GRID_PICTURES = 32


def read_prompts(path: Path | str) -> list[str]:
    """The prompts of a text file, one a line, empty lines left out. Raises UserError when there is none."""
    path = existing_file(path, "prompt file", "write one with a prompt on each line")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a prompt file: it is not UTF-8 text.") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"{path} holds no prompt; write one on each line.")
    return prompts


def load_pipeline(run: Path | str, adapter: Path | str | None = None) -> VLADPipeline:
    """The pipeline of a finished run, on the GPU where there is one, with an adapter merged in if given.

    Raises UserError when there is no pipeline, or the adapter does not fit it.
    """
    pipeline = VLADPipeline.from_pretrained(pipeline_folder(Path(run)))
    if adapter is not None:
        folder = Path(adapter) / "adapter" if (Path(adapter) / "adapter").is_dir() else Path(adapter)
        if not (folder / "refine_unet").is_dir():
            raise UserError(f"There is no adapter in {adapter}; give the directory of a finished LoRA run.")
        for part in ("lvlm", "composition", "layout_unet", "refine_unet"):
            if (folder / part).is_dir():
                pipeline.register_modules(**{part: load_adapter(getattr(pipeline, part), folder / part)})
    for part in (pipeline.lvlm, pipeline.composition, pipeline.autoencoder, pipeline.layout_unet, pipeline.refine_unet):
        if part is not None:
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def sample_to_directory(
    pipeline: VLADPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    layout: Layout | None = None,
    steps: int | None = None,
    text_scale: float | None = None,
    layout_scale: float | None = None,
    refit: bool | None = None,
) -> VLADPipelineOutput:
    """Draws the prompts and writes what the module's head shows. Every prompt is checked before the first is drawn."""
    for prompt in prompts:
        for quote in nested_marks(pipeline.check_prompt(prompt, layout)):
            print(f"The quotation marks inside {quote.text!r} are spelled like its letters.", file=sys.stderr)
    for folder in (out, out / "layouts", out / "grids"):
        writable_directory(folder, "pictures", needed_bytes=len(prompts) * pipeline.config.picture_pixels**2 * 4)
    result = VLADPipelineOutput(images=[], layouts=[], glyph_maps=[])
    size = pipeline.config.batch_size
    with tqdm(total=len(prompts), desc="sampling", unit="picture") as bar:
        for start in range(0, len(prompts), size):
            chunk = slice(start, start + size)
            given = None if layout is None else [layout] * len(prompts[chunk])
            part = pipeline(prompts[chunk], seeds[chunk], given, steps, text_scale, layout_scale, refit)
            for name in ("images", "layouts", "glyph_maps"):
                getattr(result, name).extend(getattr(part, name))
            for number in range(start, start + len(part.images)):
                _write_picture(result, number, prompts[number], seeds[number], out)
            bar.update(len(part.images))
    _grid(prompts, result).save(out / "grids" / "grid.png")
    return result


def _write_picture(result: VLADPipelineOutput, number: int, prompt: str, seed: int, out: Path) -> None:
    name = f"{number:04d}-{_slug(prompt)}"
    layout, picture = result.layouts[number], result.images[number]
    about = PngInfo()
    about.add_itxt("vlad", json.dumps({"prompt": prompt, "seed": seed, "layout": layout_to_json(layout)}))
    picture.save(out / f"{name}.png", pnginfo=about)
    write_layout(layout, out / "layouts" / f"{name}.json")
    overlay(picture.resize((picture.width * 4, picture.height * 4)), layout).save(out / "layouts" / f"{name}.png")


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]


def _grid(prompts: Sequence[str], result: VLADPipelineOutput) -> Image.Image:
    rows = []
    for prompt, picture, layout, glyph_map in zip(
        prompts[:GRID_PICTURES], result.images, result.layouts, result.glyph_maps, strict=False
    ):
        plan = draw_layout(layout, picture.width)
        raw = plan if glyph_map is None else picture_of_map(glyph_map)
        rows.append(GridRow(prompt, (raw, plan, picture)))
    return sample_grid(rows, ("raw plan", "layout", "picture"), cell_pixels=128)
