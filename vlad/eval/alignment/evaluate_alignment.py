"""An encoder's scores on an alignment.jsonl and its images: ENCODER, FILE -> OUT/alignment.md, alignment.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vlad.eval.alignment.alignment_prompts import AlignmentPrompt, read_alignment_prompts
from vlad.eval.benchmark.image_sets import find_images
from vlad.eval.benchmark.prompt_files import read_prompt_files
from vlad.eval.benchmark.targets import default_out
from vlad.eval.benchmark.terminal_report import partial_lines
from vlad.eval.image_files import load_image
from vlad.utils.atomic_files import write_json
from vlad.utils.errors import UserError
from vlad.utils.paths import writable_directory


@dataclass(frozen=True)
class AlignmentEvaluation:
    """The table with its title, the prompts of missing images, the unreadable images, and the folder of the files."""

    text: str
    prompts: int
    missing: list[str]
    unreadable: list[str]
    out: Path

    @property
    def is_partial(self) -> bool:
        """Whether images are missing or cannot be read: the scores are of the others."""
        return bool(self.missing or self.unreadable)

    def summary(self) -> str:
        """The scores for a terminal."""
        faults = {"missing": self.missing, "unreadable": self.unreadable}
        lines = [self.text, *partial_lines(faults, self.prompts, "prompts")]
        return "\n".join([*lines, f"alignment.md, alignment.json: {self.out}"])


def evaluate_alignment(
    encoder: Path,
    prompt_file: Path,
    images: Path | None = None,
    images_per_prompt: int | None = None,
    first: int | None = None,
    out: Path | None = None,
) -> AlignmentEvaluation:
    """Scores a run's own towers, or a CLIP's folder, on the file's (first) prompts.

    `images` is a folder in place of the reference images that the file names. Raises UserError for files that are not
    there, and where no image can be read.
    """
    targets = {prompt.key: prompt for prompt in read_alignment_prompts(prompt_file)[:first]}
    prompts = [prompt for prompt in read_prompt_files([prompt_file]) if prompt.key in targets]
    if images is None:
        places = [(prompt.key, Path(prompt.reference)) for prompt in prompts if prompt.reference is not None]
        shown = "reference images"
    elif images.is_dir():
        found = find_images(images, prompts, images_per_prompt)
        places = [(image.prompt.key, image.path) for image in found if image.path is not None]
        shown = f"images of {images}"
    else:
        raise UserError(f"There is no folder of images at {images}.")
    places = [(key, path) for key, path in places if path.is_file()]
    missing = sorted(set(targets) - {key for key, _ in places})
    if not places:
        raise UserError("The prompt file's reference images are not there; name a folder with --images.")
    unreadable: list[str] = []

    def load(path: Path) -> np.ndarray | None:
        try:
            return load_image(path)
        except ValueError:
            unreadable.append(str(path))
            return None

    from vlad.eval.alignment.alignment_scores import alignment_table, score_encoder  # late: torch takes seconds to load
    from vlad.eval.alignment.joint_encoders import joint_encoder

    model = joint_encoder(encoder)
    out = writable_directory(out or default_out(encoder, [prompt_file]), "the scores")
    pairs: list[tuple[AlignmentPrompt, Callable[[], np.ndarray | None]]] = [
        (targets[key], partial(load, path)) for key, path in places
    ]
    with tqdm(total=len(pairs), desc="embedding", unit="image") as bar:
        scores = score_encoder(model, pairs, lambda done: bar.update(done - bar.n))
    text = f"{model.name} on {len(places) - len(unreadable)} {shown}, {prompt_file}\n\n{alignment_table(scores)}"
    (out / "alignment.md").write_text(text, encoding="utf-8")
    record = {"encoder": str(encoder), "shown": shown, "missing": missing, "unreadable": unreadable}
    write_json(out / "alignment.json", {**record, "scores": [asdict(score) for score in scores]})
    return AlignmentEvaluation(text, len(targets), missing, unreadable, out)
