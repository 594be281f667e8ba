"""Training throughput of a stage: images per second, model FLOP utilisation (MFU), waiting for data, peak memory.

    count_flops      floating-point operations of one step, counted by torch
    matrix_rate      the rate that the device reaches in one large matrix product
    measure_stage    some steps with the run's own trainer, in a temporary run directory

MFU is the share of the matrix rate that training uses; it counts the model's own products, not those that recomputed
activations add.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vlad.config.schema import Config
from vlad.data.collate import collate
from vlad.data.dataset import first_samples
from vlad.data.shard_sets import open_sets
from vlad.models.attention import set_attention
from vlad.training.build import seeded_parts
from vlad.training.build_stage import build_stage, stage_names
from vlad.training.callbacks.metrics_logging import StepTimer
from vlad.training.callbacks.stop_on_signal import StopOnSignal
from vlad.training.devices import run_device
from vlad.training.fit_stage import Run, stage_callbacks, stage_data, stage_trainer
from vlad.training.memory_savers import cast_frozen_weights, configure_models
from vlad.training.precision import computed_in, stage_precision
from vlad.training.run import silence_libraries
from vlad.training.stages import set_modes
from vlad.training.validate import check_stages, validate
from vlad.utils.errors import UserError
from vlad.utils.hardware import synchronize

COUNTED_IMAGES = 2
MATRIX_ROWS = {"cpu": 2048, "mps": 4096, "cuda": 8192}
MATRIX_SECONDS = 1.0


@dataclass(frozen=True)
class StageFigures:
    """Speed and memory of a stage's steps on one process."""

    images_per_second: float
    step_seconds: float
    # Share of the time spent waiting for the loader.
    data_wait: float
    # Of the process; on a GPU, of its memory.
    peak_bytes: int
    attention: str


def check_stage(config: Config, name: str) -> None:
    """Raises UserError for a stage that this run does not have."""
    stages = ("align", "autoencoder", "layout", "refine")
    if name not in stages:
        raise UserError(f"there is no stage {name!r}; choose one of {', '.join(stages)}.")
    if name == "layout" and config.layout.kind == "none":
        raise UserError("layout.kind is none: this run has no layout stage; measure refine.")


def benchmark_config(config: Config, name: str, steps: int, folder: str) -> Config:
    """The config for `steps` of one stage, with its run directory in `folder`, without checkpoints and validation."""
    optim = replace(getattr(config.train, name), steps=steps, warmup_steps=1)
    trainer = replace(
        config.trainer,
        sample_every_steps=0,
        checkpoint_every_steps=10**9,
        keep_every_steps=0,
        log_every_steps=10,
        wandb="off",
    )
    train = replace(config.train, **{name: optim})
    data, validation = replace(config.data, held_out=None), replace(config.validation, share=0.0)
    config = replace(config, name="measured", runs=folder, resume="auto")
    return replace(config, trainer=trainer, train=train, data=data, validation=validation)


def measure_stage(config: Config, name: str, steps: int, warmup: int) -> StageFigures:
    """Times `steps` of a stage after `warmup` others, in this process, from models that no stage has trained yet.

    Raises UserError as a run would.
    """
    check_stage(config, name)
    with tempfile.TemporaryDirectory(prefix="vlad-measured-") as folder:
        timer, attention = _time_steps(benchmark_config(config, name, warmup + steps, folder), name, warmup)
    images = config.data.batch_size * getattr(config.train, name).accumulate_batches
    seconds = timer.seconds / steps
    return StageFigures(images / seconds, seconds, timer.waited / timer.seconds, timer.peak_bytes, attention)


def _time_steps(config: Config, name: str, warmup: int) -> tuple[StepTimer, str]:
    silence_libraries()
    data = validate(config)
    parts, config = seeded_parts(config)
    check_stages(config, [name], data)
    precision = stage_precision(config, name)[0]
    attention = configure_models(config, parts, run_device(config), computed_in(precision))
    timer = StepTimer(warmup)
    run = Run(config, parts, data, (name,), StopOnSignal(), callbacks=(timer,))
    built = build_stage(config, parts, name, data.shards)
    (config.directory / name).mkdir(parents=True)
    trainer = stage_trainer(run, name, stage_callbacks(run, name, built), resumed=None)
    set_modes(built.module)
    with cast_frozen_weights(built.module, built.module.trained_names(), precision):
        trainer.fit(built.module, datamodule=stage_data(run, name))
    return timer, attention.removeprefix("attention: ")


def count_flops(config: Config, name: str) -> float:
    """Floating-point operations of a training step (forward and backward) for one image."""
    check_stage(config, name)
    sets = open_sets(config.data.sets, config.data.fetch)
    device = run_device(config)
    parts, config = seeded_parts(config)
    if name not in stage_names(config, parts):
        raise UserError(f"this run has no stage {name}; it has {', '.join(stage_names(config, parts))}.")
    stage: Any = build_stage(config, parts, name, sets).module.to(device)
    set_modes(stage)
    set_attention(parts.unets, "sdpa", device)
    batch = collate(first_samples(sets, config.data.stream(config.seed), COUNTED_IMAGES)).to(device)
    for log in ("log", "log_dict"):
        setattr(stage, log, lambda *_, **__: None)  # there is no trainer to log to
    dtype = computed_in(stage_precision(config, name)[0])
    counter = FlopCounterMode(display=False)
    # Attention in plain matrix products: the counter does not know every fused kernel.
    with counter, sdpa_kernel(SDPBackend.MATH), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        stage.training_step(batch, 0).backward()
    return counter.get_total_flops() / COUNTED_IMAGES


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large square matrix product: the best within about a second."""
    side = MATRIX_ROWS[device.type]
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    best, until = float("inf"), time.perf_counter() + MATRIX_SECONDS
    a @ b
    while time.perf_counter() < until:
        synchronize(device)
        started = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best
