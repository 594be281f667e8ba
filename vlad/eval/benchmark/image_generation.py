"""Benchmark images that a generator makes: OUT/images/KEY_SAMPLE.png, with the layout that was used beside them.

An image's noise depends on the seed, the prompt's id and the sample's number alone, so missing images can be generated
later, in any batch.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlad.eval.benchmark.image_sets import BenchmarkImage
from vlad.eval.generators.generator import Generator
from vlad.eval.protocols.protocol import BenchmarkPrompt
from vlad.layout.layout_files import line_to_json, write_layout
from vlad.types import Layout
from vlad.utils.atomic_files import write_json
from vlad.utils.errors import UserError
from vlad.utils.json_objects import read_object
from vlad.utils.paths import writable_directory

SETTINGS = "settings.json"
PROMPT_DIGESTS = "drawn_of.json"  # of the prompts that the images of each id were generated from


def image_seed(seed: int, key: str, sample: int) -> int:
    """The seed of an image's noise, 0 to 2**62."""
    digest = hashlib.sha256(f"{seed}:{key}:{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


def images_folder(out: Path) -> Path:
    """Where an evaluation's generated images lie: OUT/images, or OUT/pictures where version 0.1 began it."""
    older = out / "pictures"
    return older if older.is_dir() else out / "images"


def generate_images(
    generator: Generator, prompts: Sequence[BenchmarkPrompt], per_prompt: int, seed: int, use_layouts: bool, out: Path
) -> Iterator[BenchmarkImage]:
    """Yields the images of every prompt, in order, once they are on the disk; existing ones are not generated again.

    Raises UserError where `check_generation` does.
    """
    folder = writable_directory(images_folder(out), "images")
    for path, content in check_generation(generator, prompts, seed, use_layouts, out).items():
        write_json(path, content)
    batch: list[BenchmarkImage] = []
    queue: list[BenchmarkImage] = []  # in the prompts' order: finished images, and those that wait for their batch

    def generate_batch() -> None:
        layouts = [Layout(image.prompt.lines) for image in batch] if use_layouts else None
        seeds = [image_seed(seed, image.prompt.key, image.sample) for image in batch]
        results = generator.generate([image.prompt for image in batch], seeds, layouts)
        for image, (pil_image, layout) in zip(batch, results, strict=True):
            assert image.path is not None
            if layout is not None and layout.lines:
                write_layout(layout, image.path.with_suffix(".json"))
            temporary = image.path.with_suffix(f".partial-{os.getpid()}")
            pil_image.save(temporary, "PNG")
            temporary.replace(image.path)
        batch.clear()

    for prompt in prompts:
        refusal = generator.refusal(prompt, Layout(prompt.lines) if use_layouts else None)
        for sample in range(per_prompt):
            if refusal is not None:
                queue.append(BenchmarkImage(prompt, sample, None, refusal))
                continue
            path = folder / f"{prompt.key}_{sample}.png"
            queue.append(BenchmarkImage(prompt, sample, path))
            if not path.is_file():
                batch.append(queue[-1])
            if len(batch) == generator.batch_size:
                generate_batch()
            if not batch:
                yield from queue
                queue.clear()
    if batch:
        generate_batch()
    yield from queue


def check_generation(
    generator: Generator, prompts: Sequence[BenchmarkPrompt], seed: int, use_layouts: bool, out: Path
) -> dict[Path, dict[str, Any]]:
    """The records that the images' folder will hold, by path.

    Raises UserError where OUT holds images of other settings, or of other prompts with the same ids.
    """
    settings = {**generator.settings(), "seed": seed, "use_layouts": use_layouts}
    _check_settings(out / SETTINGS, settings)
    return {out / SETTINGS: settings, out / PROMPT_DIGESTS: _checked_digests(out, prompts, use_layouts)}


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    stored = _read_record(path) if path.is_file() else settings
    differing = sorted(name for name in {**stored, **settings} if stored.get(name) != settings.get(name))
    if differing:
        changes = ", ".join(f"{name} {stored.get(name)}, now {settings.get(name)}" for name in differing)
        raise UserError(
            f"{path.parent} holds images that were generated with other settings ({changes}); name another folder"
            " with --out, or remove this one."
        )


def _checked_digests(out: Path, prompts: Sequence[BenchmarkPrompt], use_layouts: bool) -> dict[str, str]:
    """The digest of every prompt by id: a changed prompt file has the same ids, and their images show other prompts."""
    path, folder = out / PROMPT_DIGESTS, images_folder(out)
    stored: dict[str, str] = _read_record(path) if path.is_file() else {}
    digests = {prompt.key: _prompt_digest(prompt, use_layouts) for prompt in prompts}
    for prompt in prompts:
        has_changed = stored.get(prompt.key, digests[prompt.key]) != digests[prompt.key]
        if has_changed and any(folder.glob(f"{glob.escape(prompt.key)}_*.png")):
            raise UserError(
                f"{folder} holds images that were generated from another prompt (of the id {prompt.key!r}, now"
                f" {prompt.text[:80]!r}); name another folder with --out, or remove this one."
            )
    return {**stored, **digests}


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}), so the settings of the images beside it are unknown; name another folder"
            f" with --out, or remove {path.parent}."
        ) from error


def _prompt_digest(prompt: BenchmarkPrompt, use_layouts: bool) -> str:
    """Digest of what an image is generated from: the prompt, and the layout where that is given."""
    lines = [line_to_json(line) for line in prompt.lines] if use_layouts else []
    return hashlib.sha256(json.dumps([prompt.text, lines]).encode()).hexdigest()[:16]
