"""A run's pipeline ready for sampling: device, precision, adapters, offload; and the fingerprint of its weights."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from vlad.lora.fingerprint import hash_module
from vlad.lora.weighted_adapters import set_adapters
from vlad.pipeline.folders import read_pipeline, vlad_pipeline_folder
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.utils.errors import UserError, did_you_mean, reason_of
from vlad.utils.hardware import best_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
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


def check_dtype(dtype: str) -> None:
    """Raises UserError for a name of no precision."""
    if dtype not in DTYPES:
        raise UserError(f"There is no dtype {dtype!r}.{did_you_mean(dtype, DTYPES)} Known: {', '.join(DTYPES)}.")


def load_pipeline(
    run: Path | str,
    adapters: Path | str | Sequence[str] | None = None,
    dtype: str = "float32",
    offload: bool = False,
    channels_last: bool = False,
    compiled: bool = False,
    may_download: bool = True,
) -> VLADPipeline:
    """The pipeline of a run, on the GPU where there is one, with adapters merged in if given.

    Of a run that is still training it is the newest valid checkpoint's. `run` may be a pipeline folder, or
    `hf://OWNER/NAME` on the hub, at a commit, tag or branch with `@REVISION` behind it. An adapter is `DIR` or
    `DIR:WEIGHT`. `offload` keeps on the GPU only the model that is running; `channels_last` and `compiled`
    (torch.compile, at the first image) only affect speed. Without `may_download` the hub is not asked.
    Raises UserError when there is no pipeline, or an adapter does not fit it.
    """
    check_dtype(dtype)
    device = best_device()
    if offload and device.type == "cpu":
        raise UserError("--offload moves models between a GPU and memory, and torch finds no GPU here; leave it out.")
    if compiled:
        _check_compiler(device)
    pipeline = _pipeline_of(run, DTYPES[dtype], may_download)
    listed = [str(adapters)] if isinstance(adapters, Path | str) else list(adapters or [])
    set_adapters(pipeline, listed)
    for name in MODULES:
        part = getattr(pipeline, name)
        if part is not None:
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    for name in ("layout_unet", "refine_unet", "autoencoder"):
        part = getattr(pipeline, name)
        if part is not None and channels_last:
            part.to(memory_format=torch.channels_last)
        if part is not None and compiled and name != "autoencoder":  # is not called through `forward`
            part.compile()
    if offload:
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    return pipeline.to(device)


def _check_compiler(device: torch.device) -> None:
    """Raises UserError where torch.compile finds no compiler; for a GPU, Triton comes with torch."""
    wanted = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(wanted) is None and shutil.which("clang++") is None:
        raise UserError(
            f"--compile needs a C++ compiler on a CPU, and there is no {wanted} here; install g++, or leave it out."
        )


def _pipeline_of(run: Path | str, dtype: torch.dtype, may_download: bool) -> VLADPipeline:
    """From the hub, a folder, a finished run, or one that is still training."""
    if str(run).startswith(HUB):
        name, _, revision = str(run).removeprefix(HUB).partition("@")
        try:
            folder = Path(VLADPipeline.download(name, revision=revision or None, local_files_only=not may_download))
        except Exception as error:  # connection errors, invalid and unknown names have no common class
            if not may_download:
                raise UserError(
                    f"The image names the model {run}, which is not on this machine; if you trust it, name it yourself:"
                    f" vlad sample {shlex.quote(str(run))} --from IMAGE."
                ) from error
            raise UserError(
                f"The pipeline {run} cannot be loaded from the hub ({reason_of(error)}); check the name and the"
                f" network, or give the folder of: hf download {name} --local-dir FOLDER."
            ) from error
        return read_pipeline(folder, name, dtype)
    if not may_download and str(run).startswith(("//", "\\\\")):  # a share of another machine, on Windows
        raise UserError(f"The image names a model on another machine, {run}; if you trust it, name it yourself.")
    path = Path(run)
    has_pipeline = any((folder / "model_index.json").is_file() for folder in (path, path / "pipeline"))
    if not has_pipeline and (path / "config.yaml").is_file():
        from vlad.inference.unfinished_runs import pipeline_of_unfinished  # builds models as training does

        return pipeline_of_unfinished(path).to(dtype)
    return read_pipeline(vlad_pipeline_folder(path), str(run), dtype)


def model_fingerprint(pipeline: VLADPipeline) -> str:
    """16 hexadecimal digits of the weights and of the pipeline's config.

    Sampling defaults (steps, scales), which a recipe holds itself, do not count.
    """
    digest = hashlib.sha256()
    kept = ("with_layout", "pooling", "states", "template", "max_tokens", "process")
    digest.update(json.dumps({name: pipeline.config[name] for name in kept}, sort_keys=True).encode())
    for name in MODULES:
        module = getattr(pipeline, name)
        if module is not None:
            hash_module(digest, name, module)
    return digest.hexdigest()[:16]
