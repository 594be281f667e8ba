"""Pipeline folders: found in a run directory, checked, and loaded."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import torch

from vlad.models.autoencoder import PatchAutoencoder
from vlad.models.composition import CompositionModule
from vlad.models.text_encoder.remote_code import load_remote_code_parts
from vlad.models.weight_files import load_parts
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.utils.errors import UserError
from vlad.utils.failures import user_errors
from vlad.utils.hub import hide_progress_bars
from vlad.utils.json_objects import read_object

ALIGNMENT_FILE = "alignment.safetensors"
OWN_CLASSES = {"PatchAutoencoder": PatchAutoencoder, "CompositionModule": CompositionModule}
MOST_TIMESTEPS = 100_000
REQUIRED_PARTS = ("lvlm", "tokenizer", "composition", "autoencoder", "refine_unet", "refine_scheduler")


def pipeline_class(folder: Path) -> str | None:
    """The pipeline class that a folder names; None where there is no pipeline."""
    index = folder / "model_index.json"
    if not index.is_file():
        return None
    try:
        record = read_object(index)
    except (OSError, ValueError) as error:
        raise UserError(f"{index} is damaged ({error}); save the pipeline anew.") from error
    name = record.get("_class_name")
    if isinstance(name, list):  # module and class
        name = name[-1] if name else None
    if not (isinstance(name, str) and name):
        raise UserError(f"{index} is damaged (it names no class of pipeline); save the pipeline anew.")
    return name


def read_pipeline(folder: Path, label: str, dtype: torch.dtype = torch.float32) -> VLADPipeline:
    """The pipeline of a folder; `label` begins error messages.

    Raises UserError for one that is damaged or incomplete, or whose weights do not fit their configs.
    """
    with reporting_damage(folder), hide_progress_bars():
        parts = load_remote_code_parts(folder, dtype)
        for name in ("layout_scheduler", "refine_scheduler"):
            _check_timesteps(folder / name / "scheduler_config.json")
        index = VLADPipeline.load_config(folder)
        remedy = "copy it again from where it was made, or name the right one"
        parts |= load_parts(folder, index, OWN_CLASSES, label, remedy, dtype)
        return VLADPipeline.from_pretrained(folder, dtype=dtype, **parts)


def _check_timesteps(scheduler: Path) -> None:
    """Raises ValueError for a schedule of more timesteps than any has: it would be computed in full."""
    timesteps = read_object(scheduler).get("num_train_timesteps", 1) if scheduler.is_file() else 1
    if not (isinstance(timesteps, int) and 0 < timesteps <= MOST_TIMESTEPS):
        raise ValueError(f"{scheduler.name}: num_train_timesteps is {timesteps!r:.100}")


def reporting_damage(folder: Path) -> AbstractContextManager[None]:
    """Inside the block a damaged file of a folder, or one with code in it, which is not run, raises UserError."""
    return user_errors(str(folder), unreadable="copy it here again, or train it anew")


def vlad_pipeline_folder(path: Path) -> Path:
    """`pipeline_folder` of a VLADPipeline. Raises UserError for another one, and for one that lacks parts."""
    folder = pipeline_folder(path)
    if (kind := pipeline_class(folder)) != VLADPipeline.__name__:
        raise UserError(
            f"{folder} holds a {kind}, not a VLADPipeline; to start from a Stable Diffusion, give it as"
            " stable_diffusion.path to a config such as configs/sd15.yaml."
        )
    named = read_object(folder / "model_index.json")
    missing = [part for part in REQUIRED_PARTS if part not in named]
    if missing:
        raise UserError(
            f"{folder}/model_index.json is damaged (it does not name {', '.join(missing)}); save the pipeline anew."
        )
    return folder


def pipeline_folder(path: Path) -> Path:
    """The pipeline of a run directory, or the folder itself if it is one. Raises UserError when there is none."""
    for folder in (path / "pipeline", path):
        if (folder / "model_index.json").is_file():
            return folder
    if (path / "config.yaml").is_file() and (path / "adapter").is_dir():
        raise UserError(f"{path} is a LoRA run: it holds an adapter, and no pipeline; name its base here.")
    if (path / "config.yaml").is_file():
        raise UserError(
            f"The run {path} is not finished; run the command that started it again to train it to its end."
        )
    own = Path("configs") / f"{path.name}.yaml"  # by default a run has its config's name
    config = own if own.is_file() else Path("configs/tiny.yaml")
    raise UserError(f"There is no run or pipeline at {path}; train one with: python train.py {config}.")
