"""Writes the open benchmark of rendered images, in place of INNOVATOR-Eval, which is not public.

    seed, split, subset, index -> scene: carriers with lines of text -> prompt, layout, reference image

Each prompt is a function of (seed, split, subset, index) alone, so a larger benchmark begins with the smaller one. The
`test` split's words are held out: rendered training images never carry them. `dev` is for tuning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from vlad.data.signs import PALETTE
from vlad.eval.alignment.alignment_prompts import AlignmentTexts
from vlad.eval.open_benchmark.alignment_subsets import ALIGNMENT_SUBSETS
from vlad.eval.open_benchmark.scenes import VERSION, Scene, SceneSampler, render_scene
from vlad.eval.open_benchmark.text_subsets import SUBSETS
from vlad.eval.options import OpenBenchmarkOptions
from vlad.layout.fonts import missing_glyphs
from vlad.layout.layout_files import line_to_json
from vlad.utils.atomic_files import write_json
from vlad.utils.errors import UserError
from vlad.utils.json_objects import read_object

ALIGNMENT_VERSION = 1  # of the subsets in alignment.jsonl
IMAGES = "pictures"  # the folder of version 1, whose digest its name is part of


def make_scene(options: OpenBenchmarkOptions, subset: str, index: int) -> Scene:
    """Entry number `index` of a subset."""
    sampler = SceneSampler(options, subset, index)
    if subset in ALIGNMENT_SUBSETS:
        prompt, carriers, texts = ALIGNMENT_SUBSETS[subset](sampler)
    else:
        (prompt, carriers), texts = SUBSETS[subset](sampler), AlignmentTexts()
    taken = {carrier.background for carrier in carriers}
    backdrop = sampler.choice(tuple(name for name in PALETTE if name not in taken))
    scene = Scene(f"{subset}-{index:04d}", subset, prompt, backdrop, carriers, texts)
    assert not any(missing_glyphs(line.text) for line in scene.layout.lines)
    return scene


def scenes(options: OpenBenchmarkOptions, subsets: Iterable[str] = SUBSETS) -> Iterator[Scene]:
    """All entries, subset by subset."""
    for subset in subsets:
        for index in range(options.count):
            yield make_scene(options, subset, index)


def scene_record(scene: Scene) -> dict[str, Any]:
    """The entry as a line of its prompt file."""
    return {
        "id": scene.key,
        "subset": scene.subset,
        "prompt": scene.prompt,
        "lines": [line_to_json(line) for line in scene.layout.lines],
        "reference": f"{IMAGES}/{scene.key}.png",
        **scene.texts.to_json(),
    }


def write_benchmark(
    options: OpenBenchmarkOptions, out: Path, on_progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Writes OUT/prompts.jsonl, OUT/alignment.jsonl, OUT/pictures/ and, last, OUT/benchmark.json; returns what that
    holds.

    Its `sha256` is over prompts.jsonl and the pixels of its images, in order, `alignment_sha256` over those of
    alignment.jsonl: equal digests are equal benchmarks. A folder of a version without alignment.jsonl gets it.
    Raises UserError where OUT holds another benchmark.
    """
    about = out / "benchmark.json"
    expected = {"version": VERSION, **asdict(options), "subsets": list(SUBSETS)}
    aligned = {"alignment_version": ALIGNMENT_VERSION, "alignment_subsets": list(ALIGNMENT_SUBSETS)}
    record: dict[str, Any] = {}
    if about.is_file():
        try:
            record = read_object(about)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{about} is damaged ({error}); name another folder with --out, or remove {out}."
            ) from error
        # Fields that an older version did not write are absent; those of another benchmark differ.
        if {**aligned, **{name: record.get(name) for name in (*expected, *aligned) if name in record}} != {
            **expected,
            **aligned,
        }:
            raise UserError(f"{out} holds another benchmark; name another folder with --out, or remove this one.")
        if "alignment_sha256" in record:
            return record
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    done = 0

    def write_subsets(file: str, subsets: Iterable[str]) -> str:
        """Writes a prompt file with its images; returns the digest of both."""
        nonlocal done
        lines, pixels = [], []
        for scene in scenes(options, subsets):
            image = render_scene(scene, options.size_pixels)
            Image.fromarray(image).save(out / IMAGES / f"{scene.key}.png")
            pixels.append(hashlib.sha256(image.tobytes()).digest())
            lines.append(json.dumps(scene_record(scene), ensure_ascii=False) + "\n")
            done += 1
            if on_progress is not None:
                on_progress(done)
        text = "".join(lines).encode()
        (out / file).write_bytes(text)
        return hashlib.sha256(text + b"".join(pixels)).hexdigest()

    if not record:
        record = {**expected, "sha256": write_subsets("prompts.jsonl", SUBSETS)}
    done = len(SUBSETS) * options.count
    record |= {**aligned, "alignment_sha256": write_subsets("alignment.jsonl", ALIGNMENT_SUBSETS)}
    write_json(about, record)
    return record
