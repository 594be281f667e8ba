"""Generation of images into an output directory: requests with names, in chunks of a batch, what exists is skipped."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from vlad.inference.output_directory import OutputDirectory
from vlad.inference.prompt_requests import PromptRequest, RejectedPrompt
from vlad.inference.recipes import Recipe
from vlad.layout.image_edits import Edit
from vlad.models.text_encoder.prompt import notes_on_quotations, quoted
from vlad.pipeline.image_request import ImageRequest
from vlad.pipeline.options import SampleSettings
from vlad.pipeline.vlad_pipeline import Reader, VLADPipeline
from vlad.types import Layout
from vlad.utils.errors import UserError, counted
from vlad.utils.failures import user_errors
from vlad.utils.hardware import best_device


@dataclass(frozen=True)
class NamedRequest:
    """An image to generate and the name of its files."""

    name: str
    request: ImageRequest
    # Whether the user gave the layout: that of an edit may also come from the prompt's strings.
    layout_given: bool

    @property
    def caption(self) -> str:
        """For contact sheets."""
        return f"{self.request.prompt.text} ({self.request.seed})"


@dataclass(frozen=True)
class Sampler:
    """A pipeline with what all images of one call share."""

    pipeline: VLADPipeline
    settings: SampleSettings
    # Fields of every image's recipe: `recipes.origin_of`.
    origin: dict[str, Any]
    # Reads raw glyph maps, to keep those that are right; None: all are refitted.
    reader: Reader | None = None

    def recipe(self, request: ImageRequest, layout: Layout, layout_given: bool) -> Recipe:
        """The recipe of an image, once its layout is known."""
        keep_raw = self.reader is not None
        prompt, seed = request.prompt.text, request.seed
        return Recipe(prompt, seed, layout, layout_given, self.settings, keep_raw=keep_raw, **self.origin)


def name_requests(
    prompts: Sequence[PromptRequest | RejectedPrompt],
    seeds: Sequence[int],
    layout: Layout | None,
    edit: Edit | None,
    pipeline: VLADPipeline,
) -> tuple[list[NamedRequest], list[RejectedPrompt]]:
    """A request for every seed of every prompt, and the prompts that this model cannot generate.

    `seeds` and `layout` are for prompts without their own. Names number the prompts, rejected ones too: a line that is
    corrected later gets the number it would have had.
    """
    requests, rejected, mismatched, unquoted = [], [], [], []
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, RejectedPrompt):
            rejected.append(prompt)
            continue
        given = prompt.layout or layout
        try:
            request = pipeline.image_request(prompt.prompt, 0, given, edit)
        except UserError as error:
            rejected.append(RejectedPrompt(prompt.place, str(error)))
            continue
        strings = prompt.prompt.strings
        if given is not None and not same_words(given, strings):
            mismatched.append(_mismatch(prompt.place, given, strings))
        elif given is None and not strings:
            unquoted.append(
                f"{prompt.place}: the prompt quotes nothing; put what the image has to spell in quotation marks."
            )
        for note in notes_on_quotations(prompt.prompt):
            print(note, file=sys.stderr)
        wrapped = request.prompt.strings
        if len(wrapped) > len(strings):
            print(
                f"{prompt.place}: its strings are set in {len(wrapped)} lines: {' / '.join(wrapped)}", file=sys.stderr
            )
        slug = re.sub(r"[^a-z0-9]+", "-", prompt.prompt.text.lower()).strip("-")[:60]
        requests += [
            NamedRequest(f"{number:04d}-{slug}-s{seed}", replace(request, seed=seed), given is not None)
            for seed in prompt.seeds or seeds
        ]
    for notes in (mismatched, unquoted):
        if notes:
            others = f" (and so for {len(notes) - 1} more)" if len(notes) > 1 else ""
            print(f"{notes[0]}{others}", file=sys.stderr)
    return requests, rejected


def same_words(layout: Layout, strings: Sequence[str]) -> bool:
    """Whether a layout holds the words that a prompt quotes, in whatever order and lines."""
    return sorted(word for line in layout.lines for word in line.text.split()) == sorted(
        word for text in strings for word in text.split()
    )


def _mismatch(place: str, layout: Layout, strings: Sequence[str]) -> str:
    in_layout = " and ".join(quoted(line.text) for line in layout.lines)
    in_prompt = " and ".join(map(quoted, strings)) or "nothing"
    return f"{place}: the layout holds {in_layout} and the prompt quotes {in_prompt}; let both say the same."


def generate_into(
    out: OutputDirectory, sampler: Sampler, requests: Sequence[NamedRequest], overwrite: bool, layout_only: bool
) -> int:
    """Generates the images (or layouts) that do not exist yet; returns how many existed.

    Raises UserError for an image of another recipe under a name (unless `overwrite`), for a folder there, and when
    memory runs out; what is finished by then is kept.
    """
    out.check_names([named.name for named in requests])
    missing = [named for named in requests if overwrite or not _exists(out, sampler, named, layout_only)]
    existing, size = len(requests) - len(missing), sampler.settings.batch_size
    with (
        out.open_index([named.name for named in requests]),
        tqdm(total=len(requests), initial=existing, desc="sampling", unit="image") as bar,
        sampler.pipeline.reuse_conditioning(),
    ):
        for start in range(0, len(missing), size):
            chunk = missing[start : start + size]
            with user_errors(f"{counted(size, 'image')} at once:", memory=_memory_remedy(size, out.added)):
                _generate_chunk(out, sampler, chunk, layout_only)
            bar.update(len(chunk))
    out.write_contact_sheets([(named.name, named.caption) for named in requests], layout_only)
    return existing


def _generate_chunk(out: OutputDirectory, sampler: Sampler, chunk: list[NamedRequest], layout_only: bool) -> None:
    pipeline, settings = sampler.pipeline, sampler.settings
    requests = [named.request for named in chunk]
    if layout_only:
        prompts, seeds, layouts = zip(*((row.prompt, row.seed, row.layout) for row in requests), strict=True)
        for named, plan in zip(chunk, pipeline.plan(prompts, seeds, settings, layouts), strict=True):
            out.write_layout(named.name, plan.layout, plan.glyph_map, (settings.width, settings.height))
        return
    output = pipeline.generate(requests, settings, reader=sampler.reader)
    for named, image, layout, glyph_map in zip(chunk, output.images, output.layouts, output.glyph_maps, strict=True):
        out.write_image(named.name, image, sampler.recipe(named.request, layout, named.layout_given), glyph_map)


def _exists(out: OutputDirectory, sampler: Sampler, named: NamedRequest, layout_only: bool) -> bool:
    given = named.request.layout if named.layout_given else None
    if layout_only:
        return out.has_layout(named.name, given)
    return out.has_image(named.name, sampler.recipe(named.request, given or Layout(()), named.layout_given))


def _memory_remedy(size: int, kept: int) -> str:
    smaller = f"--batch-size {size // 2}" if size > 1 else "a smaller --size"
    offload = "" if best_device().type == "cpu" else ", or --offload,"
    return (
        f"{counted(kept, 'image')} kept; give {smaller}{offload} and --overwrite or another --out: the images depend on"
        " the batch size in their last bit"
    )
