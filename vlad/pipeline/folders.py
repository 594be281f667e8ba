"""Pipeline folders: found in a run directory, checked, and loaded whole or refused."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from vlad.models.text_encoder.remote_code import load_remote_code_parts
from vlad.models.weight_files import check_weight_shapes
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.utils.errors import UserError
from vlad.utils.failures import user_errors
from vlad.utils.hub import hide_progress_bars


def pipeline_class(folder: Path) -> str | None:
    """The class that a pipeline folder names, None where there is no pipeline."""
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


ALIGNMENT_FILE = "alignment.safetensors"


NEEDED = ("lvlm", "tokenizer", "composition", "autoencoder", "refine_unet", "refine_scheduler")  # of a pipeline


def read_pipeline(folder: Path, said: str, dtype: torch.dtype = torch.float32) -> VLADPipeline:
    """A pipeline's folder, all of whose weights fit their configs; `said`: what a message begins with.

    Raises UserError for one that is damaged or not whole.
    """
    check_weight_shapes(folder, said)
    with reporting_damage(folder), hide_progress_bars():
        return VLADPipeline.from_pretrained(folder, dtype=dtype, **load_remote_code_parts(folder, dtype))


def reporting_damage(folder: Path) -> AbstractContextManager[None]:
    """Inside the block a damaged file of a folder, or one with code in it (which is not run), raises UserError."""
    return user_errors(str(folder), unreadable="copy it here again, or train it anew")


def vlad_pipeline_folder(path: Path) -> Path:
    """`pipeline_folder`, of a pipeline that a run of ours has made. Raises UserError for another one."""
    folder = pipeline_folder(path)
    if (kind := pipeline_class(folder)) != VLADPipeline.__name__:
        raise UserError(
            f"{folder} is a {kind}, and no run of ours has made it; to start from a Stable Diffusion, give it as"
            " stable_diffusion.path to a config such as configs/sd15.yaml."
        )
    named = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    missing = [part for part in NEEDED if part not in named]
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
    own = Path("configs") / f"{path.name}.yaml"  # a run has its config's name unless it was given another
    config = own if own.is_file() else Path("configs/tiny.yaml")
    raise UserError(f"There is no run or pipeline at {path}; train one with: python train.py {config}.")
