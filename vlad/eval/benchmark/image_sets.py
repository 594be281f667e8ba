"""The images of a benchmark's prompts: found in a folder, or drawn by a pipeline.

Drawn ones lie as OUT/images/KEY_SAMPLE.png, with the layout that was drawn, where there was one, beside them. Which
noise an image starts from depends on the seed, the prompt's id and the sample's number alone, so what is missing can
be drawn later, in any company.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from vlad.eval.benchmark.prompt_files import safe_name
from vlad.eval.generators.generator import Generator
from vlad.eval.protocols.protocol import BenchmarkPrompt
from vlad.layout.layout_files import line_to_json, read_layout, write_layout
from vlad.types import Layout, Polygon
from vlad.utils.errors import UserError
from vlad.utils.paths import writable_directory

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
INDEX = "index.jsonl"
SETTINGS = "settings.json"
DRAWN_OF = "drawn_of.json"  # what each id's images were drawn of


@dataclass(frozen=True)
class BenchmarkImage:
    """One image of a prompt; `path` is None where there is none, and `fault` says why, where that is known."""

    prompt: BenchmarkPrompt
    sample: int
    path: Path | None
    fault: str | None = None

    @property
    def name(self) -> str:
        """Unique among the evaluation's images."""
        return f"{self.prompt.key}_{self.sample}"

    def polygons(self) -> tuple[Polygon | None, ...]:
        """Where each wanted string should stand: as the prompt file says, or as the layout beside the image does.

        Strings are looked up in order; None where neither has the string.
        """
        lines = list(self.prompt.lines)
        beside = None if self.path is None else self.path.with_suffix(".json")
        if not lines and beside is not None and beside.is_file():
            try:
                lines = list(read_layout(beside).lines)
            except UserError:  # a file of somebody else's
                lines = []
        found: list[Polygon | None] = []
        for string in self.prompt.strings:
            match = next((line for line in lines if line.text == string), None)
            found.append(None if match is None else match.polygon)
            if match is not None:
                lines.remove(match)
        return tuple(found)


def image_seed(seed: int, key: str, sample: int) -> int:
    """Where an image's noise starts from, 0 to 2**62."""
    digest = hashlib.sha256(f"{seed}:{key}:{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


# Found


def find_images(folder: Path, prompts: Sequence[BenchmarkPrompt], per_prompt: int | None) -> list[BenchmarkImage]:
    """The images of every prompt, in the prompts' order, at least one entry a prompt.

    `folder/index.jsonl` names them ({"file", "id" or "prompt", "sample"?}, or as sample.py does), or else the files'
    own names: ID.png, ID_SAMPLE.png, or 0007-a-slug.png as sample.py writes. Prompts of several files also lie in
    folders of their subset's name (with the id without the subset in front). With `per_prompt` None, every prompt
    should have as many as the one that has most: a hole in a folder is missing images, not a prompt that counts for
    less. Raises UserError when no image is any prompt's.
    """
    index = folder / INDEX
    found = _by_index(index, prompts) if index.is_file() else _by_name(folder, prompts)
    if not any(found.values()):
        where = index if index.is_file() else folder
        raise UserError(
            f"No image in {where} belongs to a prompt; name them {prompts[0].key}.png or {prompts[0].key}_0.png after"
            f' the prompts\' ids, or list them in {folder / INDEX} as {{"file": "a.png", "prompt": "..."}}.'
        )
    per_prompt = per_prompt or max(map(len, found.values()))
    images = []
    for prompt in prompts:
        samples = sorted(found.get(prompt.key, {}).items())[:per_prompt]
        images += [BenchmarkImage(prompt, sample, path) for sample, path in samples]
        lacking = per_prompt - len(samples)
        taken = {sample for sample, _ in samples}
        free = (sample for sample in range(len(samples) + lacking) if sample not in taken)
        images += [BenchmarkImage(prompt, sample, None) for _, sample in zip(range(lacking), free, strict=False)]
    return images


def _by_index(index: Path, prompts: Sequence[BenchmarkPrompt]) -> dict[str, dict[int, Path]]:
    by_key = {prompt.key: prompt.key for prompt in prompts}
    by_prompt: dict[str, list[str]] = {}
    for prompt in prompts:
        by_prompt.setdefault(prompt.text, []).append(prompt.key)
    found: dict[str, dict[int, Path]] = {}

    def owner(prompt: str) -> str | None:
        # Of ids with the same prompt, the one that has fewest so far.
        return min(by_prompt.get(prompt, []), key=lambda key: len(found.get(key, ())), default=None)

    # A byte that is no UTF-8 shows in the line that it spoils.
    for number, line in enumerate(index.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            # sample.py's own index calls it "image", and that of version 0.1 "picture".
            file = next(record[name] for name in ("file", "image", "picture") if name in record or name == "picture")
            named = record.get("id", record.get("key"))
            key = by_key.get(safe_name(str(named))) if named is not None else owner(record["prompt"])
            sample = record.get("sample")
            assert isinstance(file, str) and (sample is None or isinstance(sample, int))
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            raise UserError(
                f'{index}, line {number} is not {{"file": "a.png", "id" or "prompt": "...", "sample": 0}}; mend it.'
            ) from error
        if key is not None:
            samples = found.setdefault(key, {})
            samples[len(samples) if sample is None else sample] = index.parent / file
    return found


def _by_name(folder: Path, prompts: Sequence[BenchmarkPrompt]) -> dict[str, dict[int, Path]]:
    names = {prompt.key: prompt.key for prompt in prompts}
    # LAIONEval4000/17_2.jpg is image 2 of the prompt LAIONEval4000-17, CVTG/2/17.png one of CVTG-2-17.
    inside = {(w.subset, w.key.removeprefix(f"{w.subset}-")): w.key for w in prompts if w.subset}
    numbered = {f"{number:04d}": prompt.key for number, prompt in enumerate(prompts)}
    found: dict[str, dict[int, Path]] = {}

    def owner(path: Path, stem: str) -> str | None:
        parts = path.relative_to(folder).parent.parts
        folders = (*parts, *(f"{outer}-{inner}" for outer, inner in pairwise(parts)))
        return next((inside[part, stem] for part in folders if (part, stem) in inside), None) or names.get(stem)

    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in ENDINGS or not path.is_file():
            continue
        head, _, tail = path.stem.rpartition("_")
        key, sample = owner(path, path.stem), 0
        if key is None and tail.isdigit():
            key, sample = owner(path, head), int(tail)
        if key is None and path.parent == folder:
            key, sample = numbered.get(path.stem.partition("-")[0]) if "-" in path.stem else None, 0
        if key is not None:
            found.setdefault(key, {}).setdefault(sample, path)
    return found


# Drawn


def images_folder(out: Path) -> Path:
    """Where an evaluation's generated images lie: OUT/images, or OUT/pictures where version 0.1 began it."""
    older = out / "pictures"
    return older if older.is_dir() else out / "images"


def generate_images(
    generator: Generator, prompts: Sequence[BenchmarkPrompt], per_prompt: int, seed: int, use_layouts: bool, out: Path
) -> Iterator[BenchmarkImage]:
    """The images of every prompt, in order, each given out once it is on the disk; what is there is not drawn again.

    Raises UserError when `out` holds images that were drawn in another way, or of other prompts with the same ids.
    """
    folder = writable_directory(images_folder(out), "images")
    for path, content in check_generated(generator, prompts, seed, use_layouts, out).items():
        _write_json(path, content)
    batch: list[BenchmarkImage] = []
    queue: list[BenchmarkImage] = []  # in the prompts' order, what is drawn and what waits for its batch

    def drawn() -> None:
        layouts = [Layout(image.prompt.lines) for image in batch] if use_layouts else None
        seeds = [image_seed(seed, image.prompt.key, image.sample) for image in batch]
        images = generator.generate([image.prompt for image in batch], seeds, layouts)
        for image, (pil_image, layout) in zip(batch, images, strict=True):
            assert image.path is not None
            if layout is not None and layout.lines:
                write_layout(layout, image.path.with_suffix(".json"))
            temporary = image.path.with_suffix(f".partial-{os.getpid()}")
            pil_image.save(temporary, "PNG")
            temporary.replace(image.path)
        batch.clear()

    for prompt in prompts:
        layout = Layout(prompt.lines) if use_layouts else None
        refusal = generator.refusal(prompt, layout)
        for sample in range(per_prompt):
            if refusal is not None:
                queue.append(BenchmarkImage(prompt, sample, None, refusal))
                continue
            image = BenchmarkImage(prompt, sample, folder / f"{prompt.key}_{sample}.png")
            queue.append(image)
            if not (folder / f"{prompt.key}_{sample}.png").is_file():
                batch.append(image)
            if len(batch) == generator.batch_size:
                drawn()
            if not batch:
                yield from queue
                queue.clear()
    if batch:
        drawn()
    yield from queue


def check_generated(
    generator: Generator, prompts: Sequence[BenchmarkPrompt], seed: int, use_layouts: bool, out: Path
) -> dict[Path, dict[str, Any]]:
    """Raises UserError as `generate_images` does. Gives what its records of `out` have to say, by their paths."""
    settings = {**generator.settings(), "seed": seed, "use_layouts": use_layouts}
    _check_settings(out / SETTINGS, settings)
    return {out / SETTINGS: settings, out / DRAWN_OF: _checked_prompts(out, prompts, use_layouts)}


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    stored = _read_record(path) if path.is_file() else settings
    differing = sorted(name for name in {**stored, **settings} if stored.get(name) != settings.get(name))
    if differing:
        changes = ", ".join(f"{name} {stored.get(name)}, now {settings.get(name)}" for name in differing)
        raise UserError(
            f"{path.parent} holds images that were drawn in another way ({changes}); name another folder with"
            " --out, or remove this one."
        )


def _checked_prompts(out: Path, prompts: Sequence[BenchmarkPrompt], use_layouts: bool) -> dict[str, str]:
    """Another prompt file, or one that was edited, has the same ids: their images are of other prompts."""
    path, folder = out / DRAWN_OF, images_folder(out)
    stored: dict[str, str] = _read_record(path) if path.is_file() else {}
    asked = {prompt.key: _asked_digest(prompt, use_layouts) for prompt in prompts}
    for prompt in prompts:
        is_other = stored.get(prompt.key, asked[prompt.key]) != asked[prompt.key]
        if is_other and any(folder.glob(f"{glob.escape(prompt.key)}_*.png")):
            raise UserError(
                f"{folder} holds images that were drawn of another prompt (of the id {prompt.key!r}, now"
                f" {prompt.text[:80]!r}); name another folder with --out, or remove this one."
            )
    return {**stored, **asked}


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}), so how the images beside it were drawn is not known; name another folder"
            f" with --out, or remove {path.parent}."
        ) from error
    return record


def _asked_digest(prompt: BenchmarkPrompt, use_layouts: bool) -> str:
    """What an image is drawn of: the prompt, and the layout where that is given."""
    lines = [line_to_json(line) for line in prompt.lines] if use_layouts else []
    return hashlib.sha256(json.dumps([prompt.text, lines]).encode()).hexdigest()[:16]


def _write_json(path: Path, content: Any) -> None:
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
