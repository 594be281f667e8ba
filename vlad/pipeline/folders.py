"""Pipeline folders: found in a run directory, checked, and loaded."""

from __future__ import annotations

import json
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

ALIGNMENT_FILE = "alignment.safetensors"
OWN_CLASSES = {"PatchAutoencoder": PatchAutoencoder, "CompositionModule": CompositionModule}
REQUIRED_PARTS = ("lvlm", "tokenizer", "composition", "autoencoder", "refine_unet", "refine_scheduler")


def pipeline_class(folder: Path) -> str | None:
    """The pipeline class that a folder names; None where there is no pipeline."""
    index = folder / "model_index.json"
    if not index.is_file():
        return None
    try:
        record = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{index} is damaged ({error}); save the pipeline anew.") from error
    name = record.get("_class_name") if isinstance(record, dict) else None
    if not name:
        raise UserError(f"{index} is damaged (it names no class of pipeline); save the pipeline anew.")
    return name if isinstance(name, str) else name[-1] if isinstance(name, list) and name else None


def read_pipeline(folder: Path, label: str, dtype: torch.dtype = torch.float32) -> VLADPipeline:
    """The pipeline of a folder; `label` begins error messages.

    Raises UserError for one that is damaged or incomplete, or whose weights do not fit their configs.
    """
    with reporting_damage(folder), hide_progress_bars():
        parts = load_remote_code_parts(folder, dtype)
        index = VLADPipeline.load_config(folder)
        remedy = "copy it again from where it was made, or name the right one"
        parts |= load_parts(folder, index, OWN_CLASSES, label, remedy, dtype)
        return VLADPipeline.from_pretrained(folder, dtype=dtype, **parts)


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
    named = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
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
