"""Kinds of targets (entry of configs/eval/, pipeline, folder of images), and where a target's evaluation goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

ENTRY_ENDINGS = (".yaml", ".yml")


def is_entry(target: Path) -> bool:
    """Whether the target is an entry of configs/eval/ rather than a folder."""
    return target.suffix in ENTRY_ENDINGS


def is_pipeline(target: Path) -> bool:
    """Whether the folder is a run or a pipeline, rather than a folder of images."""
    names = ("model_index.json", "pipeline/model_index.json", "config.yaml")
    return any((target / name).is_file() for name in names)


def default_out(target: Path, prompts: Sequence[Path]) -> Path:
    """Inside a run; beside the working directory's other evaluations for anything else."""
    name = prompts[0].stem + (f"-and-{len(prompts) - 1}" if len(prompts) > 1 else "")
    if (target / "config.yaml").is_file():
        return target / "evaluation" / name
    return Path("evaluations") / f"{target.resolve().stem if is_entry(target) else target.resolve().name}-{name}"
