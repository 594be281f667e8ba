"""Check of the memory plan: planned bytes of a stage against the measured peak of a process that trains it.

On the CPU, with a stand-in of 41 M parameters at 256 pixels, whose peak is far above that of an empty process.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlad.config.load import bundled_configs, load_config
from vlad.config.schema import Config
from vlad.config.training import OptimOptions
from vlad.data.collate import collate
from vlad.data.options import SyntheticOptions
from vlad.data.signs import render_sign
from vlad.diffusion.noise_schedule import build_scheduler
from vlad.lora.inject import add_adapter
from vlad.training.build import build_parts, needs_vision_tower, new_parts
from vlad.training.callbacks.phases import TextPhases
from vlad.training.memory_plan import plan_stage
from vlad.training.optim import build_optimizer
from vlad.training.stages import LayoutStage, RefineStage, set_modes

M_MMAP_THRESHOLD, MMAPPED_BYTES = -3, 131_072  # of glibc's malloc.h; its default before it adapts
PLANNED_CHANNELS = (128, 256, 384)
PLANNED = {
    "full, batch 1": ["data.batch_size=1", "lora=null"],
    "full, batch 4": ["data.batch_size=4", "lora=null"],
    "adapters, batch 4": ["data.batch_size=4"],
}


def planned_and_measured(model: Path, stage: str, pixels: int, overrides: Sequence[str]) -> tuple[int, int]:
    """Bytes that the plan gives for a stage of a stand-in, and the peak of its steps."""
    options = [
        f"stable_diffusion.path={model}",
        f"data.image_pixels={pixels}",
        "lvlm.path=null",
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        f"train.{stage}.accumulate_batches=1",
        "data.shuffle_window=8",
        "data.workers=0",
        *overrides,
    ]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # a process each
        planned, measured = (pool.apply(work, (stage, pixels, options)) for work in (_plan_stage, _measure_stage))
    return planned, measured


def _plan_stage(name: str, _: int, overrides: list[str]) -> int:
    parts, config = build_parts(load_config(bundled_configs() / "sd15.yaml", overrides))
    return plan_stage(config, parts, name).total


def _measure_stage(name: str, pixels: int, overrides: list[str]) -> int:
    """The peak of a stage's models and three of its steps, above what the process held before them."""
    torch.manual_seed(0)
    config = load_config(bundled_configs() / "sd15.yaml", overrides)
    _load_libraries(config)
    _return_freed_memory()
    gc.collect()
    before = _status_bytes("VmRSS")
    parts, config = build_parts(config)
    if name == "refine":  # as on a GPU, where the other stage's UNet stays in main memory
        parts.layout_unet = None
    for module in (parts.autoencoder, parts.text_side, parts.alignment):
        module.requires_grad_(False)
    optim: OptimOptions = getattr(config.train, name)
    stage: Any
    if name == "layout":
        TextPhases(parts.text_side, config.text_training, needs_vision_tower(config), "").unfreeze_all()
        noise = config.layout.noise
        stage = LayoutStage(parts, build_scheduler(noise), noise, config.losses, optim)
        parts.refine_unet = None  # type: ignore[assignment]
    else:
        noise = config.refine.noise
        stage = RefineStage(parts, build_scheduler(noise), noise, config.losses, optim, with_layout=True)
    stage.log_losses = stage.log_temperature = lambda *_, **__: None  # there is no trainer to log to
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    stage.record_trained_parameters()
    set_modes(stage)
    optimizer = build_optimizer(stage, optim, stage.trained_names(), fused=True)
    named = dict(stage.named_parameters())
    average = {key: named[key].detach().clone() for key in stage.trained_names()}
    signs = [render_sign(SyntheticOptions(size_pixels=pixels), number) for number in range(config.data.batch_size)]
    batch = collate(signs)
    for step in range(3):
        stage.training_step(batch, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(list(average.values()), [named[key].detach() for key in average], 0.1)
    return _status_bytes("VmHWM") - before


def _load_libraries(config: Config) -> None:
    """Imports what building the models would: the libraries' own memory is not part of the plan."""
    importlib.import_module("vlad.models.stable_diffusion")
    if config.lora is not None:
        add_adapter(nn.Sequential(nn.Linear(1, 1)), config.lora, ("0",), "none")  # peft imports its quantisers
    new_parts(load_config(bundled_configs() / "tiny.yaml"))


def _return_freed_memory() -> None:
    """Has glibc return freed tensors to the system at once: a GPU's allocator would use their memory again.

    By default it keeps blocks of up to 32 MB in its heap, in whose gaps later tensors do not fit.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MMAPPED_BYTES)


def _status_bytes(field: str) -> int:
    """A field of this process's /proc status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
