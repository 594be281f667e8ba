"""The questions of a human study: images of several systems on the same prompts, in a balanced order for each rater.

    systems (a folder each), prompts --> study, the same for all raters
    study, rater number --> questions in the rater's own order

A rater sees images and prompts, never the names of systems or files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np

from vlad.eval.benchmark.image_sets import find_images
from vlad.eval.image_files import load_image
from vlad.eval.options import Box
from vlad.eval.protocols.protocol import BenchmarkPrompt
from vlad.utils.errors import UserError

Kind = Literal["scores", "pairs"]
# The paper's three questions (Table III), 1 to 5.
ASPECTS = {
    "quality": "Overall quality",
    "alignment": "Semantic alignment: does the image show what the prompt says?",
    "text": "Text accuracy: is the text spelled as asked?",
}
SCALE = (1, 2, 3, 4, 5)
CHOICES = ("left", "right", "tie")


@dataclass(frozen=True)
class Study:
    """Systems with one image of every prompt each, and the prompts.

    `masked` has a box (0..1) for each system whose images carry a watermark, which would give the system away.
    """

    kind: Kind
    systems: Mapping[str, Mapping[str, Path]]  # name -> prompt's key -> image
    prompts: Mapping[str, str]  # key -> text
    seed: int = 0
    masked: Mapping[str, Box] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of systems, prompts and the bytes of all images: another study has another one."""
        content = hashlib.sha256(json.dumps([self.kind, self.seed, dict(self.prompts)]).encode())
        for name, images in sorted(self.systems.items()):
            content.update(name.encode())
            for key, path in sorted(images.items()):
                content.update(key.encode() + hashlib.sha256(path.read_bytes()).digest())
        if self.masked:
            content.update(json.dumps(sorted(self.masked.items())).encode())
        return content.hexdigest()[:16]


@dataclass(frozen=True)
class Question:
    """A prompt with one image to score, or two to choose from, and the box of each to paint over (or None)."""

    key: str
    prompt: str
    images: tuple[Path, ...]
    masked: tuple[Box | None, ...]


def make_study(
    kind: Kind,
    systems: Mapping[str, Path],
    prompts: Sequence[BenchmarkPrompt],
    seed: int = 0,
    masked: Mapping[str, Box] | None = None,
) -> Study:
    """The study of several systems' folders, on the prompts of which all have an image.

    Raises UserError for fewer than two systems, for folders without images of the prompts, for an image that cannot
    be read, and where no prompt is left.
    """
    if len(systems) < 2:
        raise UserError("A study compares at least two systems; name each as NAME=FOLDER.")
    by_system: dict[str, dict[str, Path]] = {}
    for name, folder in systems.items():
        if not folder.is_dir():
            raise UserError(f"There is no folder of images at {folder} ({name}).")
        images = find_images(folder, prompts, None)
        first: dict[str, Path] = {}
        for image in images:
            if image.path is not None:
                first.setdefault(image.prompt.key, image.path)
        by_system[name] = first
    shared = [prompt for prompt in prompts if all(prompt.key in images for images in by_system.values())]
    if not shared:
        raise UserError("No prompt has an image of every system; generate them all from the same prompt file.")
    keys = {prompt.key for prompt in shared}
    kept = {name: {key: path for key, path in images.items() if key in keys} for name, images in by_system.items()}
    for path in (path for images in kept.values() for path in images.values()):
        try:
            load_image(path)
        except ValueError as error:
            raise UserError(
                f"{path} cannot be read as an image; put a whole one there, or remove it: its prompt is then left out."
            ) from error
    return Study(kind, kept, {prompt.key: prompt.text for prompt in shared}, seed, masked or {})


def questions_of(study: Study, rater_number: int) -> list[Question]:
    """All questions in the order of rater number 0, 1, ...

    Scores: rounds of all prompts in random order, the systems shifted by one a round and a rater (a Latin square), so
    that over as many raters as systems every system comes first equally often.
    Pairs: each pair of systems once a prompt; which one is on the left alternates from rater to rater.
    """
    rng = np.random.default_rng((study.seed, rater_number))
    keys, names = list(study.prompts), sorted(study.systems)
    questions: list[Question] = []
    if study.kind == "scores":
        for round_number in range(len(names)):
            for place in rng.permutation(len(keys)):
                name = names[(int(place) + round_number + rater_number) % len(names)]
                questions.append(_question(study, keys[place], (name,)))
        return questions
    pairs = list(combinations(names, 2))
    for number in rng.permutation(len(keys) * len(pairs)):
        place, which = divmod(int(number), len(pairs))
        pair = pairs[which]
        is_swapped = (place + which + rater_number) % 2
        questions.append(_question(study, keys[place], pair[::-1] if is_swapped else pair))
    return questions


def _question(study: Study, key: str, names: tuple[str, ...]) -> Question:
    images = tuple(study.systems[name][key] for name in names)
    return Question(json.dumps([key, *names]), study.prompts[key], images, tuple(map(study.masked.get, names)))
