"""Images of a benchmark's prompts that lie in a folder, matched with the prompts by an index or by their names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from vlad.eval.benchmark.prompt_files import safe_name
from vlad.eval.protocols.protocol import BenchmarkPrompt
from vlad.layout.layout_files import read_layout
from vlad.types import Polygon
from vlad.utils.errors import UserError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
INDEX = "index.jsonl"


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
        """The polygon of each target string, from the prompt file or else from the layout beside the image; None for a
        string that neither has. Strings are looked up in order.
        """
        lines = list(self.prompt.lines)
        beside = None if self.path is None else self.path.with_suffix(".json")
        if not lines and beside is not None and beside.is_file():
            try:
                lines = list(read_layout(beside).lines)
            except UserError:  # not a layout of ours
                lines = []
        found: list[Polygon | None] = []
        for string in self.prompt.strings:
            match = next((line for line in lines if line.text == string), None)
            found.append(None if match is None else match.polygon)
            if match is not None:
                lines.remove(match)
        return tuple(found)


def find_images(folder: Path, prompts: Sequence[BenchmarkPrompt], per_prompt: int | None) -> list[BenchmarkImage]:
    """The images of every prompt, in the prompts' order, at least one entry a prompt.

    `folder/index.jsonl` names them ({"file", "id" or "prompt", "sample"?}, or as sample.py does), or else the files'
    own names: ID.png, ID_SAMPLE.png, or 0007-a-slug.png as sample.py writes. Prompts of several files also lie in
    folders of their subset's name (with the id without the subset in front). With `per_prompt` None, every prompt
    should have as many as the one with most: what others lack counts as missing. Raises UserError when no image
    belongs to a prompt.
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

    # An invalid byte shows in its own line.
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
                f'{index}, line {number} is not {{"file": "a.png", "id" or "prompt": "...", "sample": 0}}; correct it.'
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
