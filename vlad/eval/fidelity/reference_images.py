"""Reference images of FID and KID: the real images that the prompt file names, or those of a folder.

    prompt file --> an image a prompt
    folder -------> its images; of each subset its own where the folder has subfolders of their names

Distances compare sets, not pairs. Only images of prompts that have references take part (MARIO-Eval has real images of
three of its six sets).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlad.eval.benchmark.image_sets import ENDINGS
from vlad.eval.protocols.protocol import BenchmarkPrompt
from vlad.utils.errors import UserError

NO_REFERENCES = (
    "FID and KID compare with real images, and the prompt file names none as reference; give a folder of them with"
    " --references."
)


@dataclass(frozen=True)
class References:
    """Real images, and the ids of the prompts whose images are compared with them."""

    paths: tuple[Path, ...] = ()
    prompts: frozenset[str] = frozenset()


def references_of(prompts: Sequence[BenchmarkPrompt], folder: Path | None = None) -> References:
    """The folder's references, or those that the prompts name where it is None.

    Raises UserError for a folder without images.
    """
    if folder is None:
        named = [prompt for prompt in prompts if prompt.reference is not None]
        paths = dict.fromkeys(Path(str(prompt.reference)) for prompt in named)
        return References(tuple(paths), frozenset(prompt.key for prompt in named))
    if not folder.is_dir():
        raise UserError(f"There is no folder of reference images at {folder}; name another with --references.")
    subsets = dict.fromkeys(prompt.subset for prompt in prompts if prompt.subset)
    by_subset = {name: _images_in(folder / name) for name in subsets if (folder / name).is_dir()}
    if by_subset:
        found = [path for paths in by_subset.values() for path in paths]
        covered = {prompt.key for prompt in prompts if by_subset.get(prompt.subset)}
    else:
        found, covered = _images_in(folder), {prompt.key for prompt in prompts}
    if not found:
        raise UserError(f"There is no reference image in {folder} ({', '.join(ENDINGS)}); name another folder.")
    return References(tuple(found), frozenset(covered))


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
