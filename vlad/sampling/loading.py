"""A run's pipeline ready to draw: device, precision, adapters, offload; and the fingerprint of what it holds."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlad.building import own_pipeline_folder
from vlad.errors import UserError, did_you_mean
from vlad.pipeline import VLADPipeline
from vlad.sampling.running import pipeline_of_running
from vlad.text.lora import merge_adapters, restore_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ADAPTED = ("lvlm", "composition", "layout_unet", "refine_unet")
MODULES = (
    "lvlm",
    "composition",
    "autoencoder",
    "layout_unet",
    "refine_unet",
    "own_text_encoder",
    "own_text_encoder_2",
)
HUB = "hf://"
MARKS_PER_TENSOR = 1024
_UNADAPTED = "_unadapted_weights"  # where a pipeline keeps what its adapters have changed


def load_pipeline(
    run: Path | str, adapters: Path | str | Sequence[str] | None = None, dtype: str = "float32", offload: bool = False
) -> VLADPipeline:
    """The pipeline of a run, on the GPU where there is one, with adapters merged in if given.

    A run that is still training gives its newest valid checkpoint. `run` may be a pipeline folder, or `hf://OWNER/NAME`
    on the hub. An adapter is `DIR` or `DIR=WEIGHT`. `offload` holds on the GPU only the model that works at the time.
    Raises UserError when there is no pipeline, or an adapter does not fit it.
    """
    if dtype not in DTYPES:
        raise UserError(f"There is no dtype {dtype!r}.{did_you_mean(dtype, DTYPES)} Known: {', '.join(DTYPES)}.")
    has_gpu = torch.cuda.is_available()
    if offload and not has_gpu:
        raise UserError("--offload moves models between a GPU and memory, and torch finds no GPU here; leave it out.")
    pipeline = _pipeline_of(run, DTYPES[dtype])
    listed = [str(adapters)] if isinstance(adapters, Path | str) else list(adapters or [])
    set_adapters(pipeline, listed)
    for name in MODULES:
        part = getattr(pipeline, name)
        if part is not None:
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    if offload:
        pipeline.enable_model_cpu_offload()
        return pipeline
    return pipeline.to("cuda") if has_gpu else pipeline


def _pipeline_of(run: Path | str, dtype: torch.dtype) -> VLADPipeline:
    """From the hub, a folder, a finished run, or one that is still training."""
    if str(run).startswith(HUB):
        name = str(run).removeprefix(HUB)
        try:
            return VLADPipeline.from_pretrained(name, dtype=dtype)
        except (OSError, ValueError) as error:
            raise UserError(
                f"There is no pipeline {name} in reach on the hub; check the name and the network."
            ) from error
    path = Path(run)
    has_pipeline = any((folder / "model_index.json").is_file() for folder in (path, path / "pipeline"))
    if not has_pipeline and (path / "config.yaml").is_file():
        return pipeline_of_running(path).to(dtype)
    return VLADPipeline.from_pretrained(own_pipeline_folder(path), dtype=dtype)


def set_adapters(pipeline: VLADPipeline, adapters: Sequence[str]) -> None:
    """Merges adapters, `DIR` or `DIR=WEIGHT` each, in place of those that are merged now; none unloads all.

    Raises UserError for a folder without an adapter, and for one of another base; nothing is merged then.
    """
    chosen = [_adapter_of(said) for said in adapters]
    for part, weights in getattr(pipeline, _UNADAPTED, {}).items():
        restore_weights(getattr(pipeline, part), weights)
    unadapted: dict[str, dict[str, Tensor]] = {}
    try:
        for part in ADAPTED:
            own = [(folder / part, weight) for folder, weight in chosen if (folder / part).is_dir()]
            if own and getattr(pipeline, part) is None:
                raise UserError(f"The adapter in {own[0][0].parent} is for a {part}, and this pipeline has none.")
            if own:
                unadapted[part] = merge_adapters(getattr(pipeline, part), own)
    except UserError:
        for part, weights in unadapted.items():
            restore_weights(getattr(pipeline, part), weights)
        unadapted = {}
        raise
    finally:
        setattr(pipeline, _UNADAPTED, unadapted)


def _adapter_of(said: str) -> tuple[Path, float]:
    """The adapter's folder and its weight."""
    name, equals, number = said.rpartition("=")
    weight = 1.0
    if equals:
        try:
            weight = float(number)
        except ValueError:
            name = said
    else:
        name = said
    if not math.isfinite(weight):
        raise UserError(f"--adapter {said}: the weight must be a finite number, not {number}.")
    path = Path(name)
    folder = path / "adapter" if (path / "adapter").is_dir() else path
    if not (folder / "refine_unet").is_dir():
        raise UserError(f"There is no adapter in {path}; give the directory of a finished LoRA run.")
    return folder, weight


def model_fingerprint(pipeline: VLADPipeline) -> str:
    """16 hexadecimal digits of the weights and of what the pipeline's config says of them.

    Of every tensor the name, the shape, the type and up to 1024 values spread over it: training moves nearly all
    values, and a large model is read in seconds. Defaults that a recipe holds itself (steps, scales) do not count.
    """
    digest = hashlib.sha256()
    kept = ("with_layout", "pooling", "states", "template", "max_tokens", "process")
    digest.update(json.dumps({name: pipeline.config[name] for name in kept}, sort_keys=True).encode())
    for name in MODULES:
        module = getattr(pipeline, name)
        if module is not None:
            _add_module(digest, name, module)
    return digest.hexdigest()[:16]


def _add_module(digest: Any, name: str, module: nn.Module) -> None:
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}.{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        values = tensor.detach().flatten()
        step = max(1, values.numel() // MARKS_PER_TENSOR)
        digest.update(values[::step].cpu().contiguous().view(torch.uint8).numpy().tobytes())
