"""The pipeline of a run that is still training: finished stages as published, the last one from its checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vlad.config.load import load_config
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.training.build import build_parts, build_pipeline
from vlad.training.build_stage import stage_names
from vlad.training.callbacks.ema import MAIN
from vlad.training.checkpoint import newest_checkpoint, read_checkpoint
from vlad.training.parts import TRAINED, Parts
from vlad.utils.errors import UserError


def pipeline_of_unfinished(run: Path) -> VLADPipeline:
    """The pipeline of a run's newest valid checkpoint, with EMA weights; prints which checkpoint that is.

    Raises UserError where the refine stage has no checkpoint yet, and for a LoRA run, which makes an adapter.
    """
    config = load_config(run / "config.yaml")
    if config.lora is not None and config.base is not None and (run / "adapter").is_dir():
        raise UserError(f"{run} is an adapter; sample from its base with it: {config.base} --adapter {run}.")
    if config.lora is not None and config.base is not None:
        raise UserError(f"{run} trains an adapter and is not finished; sample from its base {config.base} until then.")
    if config.align_stage == "only":
        raise UserError(f"{run} trains a text side and generates no images; name it as text_base of a run that does.")
    _source(run, "refine")  # the last stage, and one of every such run: checked before models are built
    torch.manual_seed(config.seed)  # untrained weights are as the run has them
    parts, config = build_parts(config)
    sources = {name: _source(run, name) for name in stage_names(config, parts)}
    for name, source in sources.items():
        if source.name != TRAINED:
            print(f"{run} is not finished; sampling from {source}", file=sys.stderr)
        _load_stage(parts, source, name)
    return build_pipeline(config, parts)


def _source(run: Path, name: str) -> Path:
    """The weights that a stage has published, or its newest valid checkpoint. Raises UserError where it has neither."""
    if (run / name / TRAINED).is_file():
        return run / name / TRAINED
    newest, _ = newest_checkpoint(run / name / "checkpoints")
    if newest is None:
        raise UserError(f"The run {run} is not finished: its stage {name} has saved nothing yet; wait, or train on.")
    return newest


def _load_stage(parts: Parts, source: Path, name: str) -> None:
    """Loads the weights that a stage has trained so far."""
    if source.name == TRAINED:
        weights = load_file(source)
    else:
        content = read_checkpoint(source)
        weights = {**content["state_dict"], **content["callbacks"]["ExponentialAverage"]["averages"][MAIN]}
    unet = parts.layout_unet if name == "layout" else parts.refine_unet
    modules: dict[str, nn.Module | None] = {
        "autoencoder": parts.autoencoder,
        "text_side": parts.text_side,
        "unet": unet,
    }
    for prefix, module in modules.items():
        own: dict[str, Tensor] = {
            key.removeprefix(f"{prefix}."): value for key, value in weights.items() if key.startswith(f"{prefix}.")
        }
        if own and module is not None:
            unknown = module.load_state_dict(own, strict=False).unexpected_keys
            if unknown:
                raise UserError(
                    f"{source.parent} holds weights of another config ({unknown[0]}); train the run on, or anew."
                )
