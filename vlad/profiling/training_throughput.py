"""What a stage's steps take: images a second, share of the device's matrix rate, waiting for data, memory.

    count_flops      one step of the stage as it stands, its matrix products counted by torch
    matrix_rate      what the device makes of one large matrix product
    measure_stage    some steps with the run's own trainer, in a directory that is thrown away

MFU, the share of the matrix rate that training uses, counts the model's own products: those that recomputed activations
add are no use to anybody.
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
from vlad.config.training import OptimOptions
from vlad.data.collate import collate
from vlad.data.dataset import first_samples
from vlad.data.shard_sets import open_sets
from vlad.models.attention import set_attention
from vlad.training.add_adapters import adaptable
from vlad.training.caching import cached_sets
from vlad.training.callbacks.metrics_logging import StepClock
from vlad.training.callbacks.progress import StopOnSignal
from vlad.training.datamodule import ShardDataModule
from vlad.training.devices import run_device
from vlad.training.optim import check_optimizer
from vlad.training.precision import computed_in, stage_precision
from vlad.training.run import build_stage, quieten, set_switches, stage_names, stored, training_parts
from vlad.training.stages import set_modes
from vlad.training.trainer import build_trainer
from vlad.training.validate import validate
from vlad.utils import distributed
from vlad.utils.errors import UserError

COUNTED_IMAGES = 2
MATRIX = {"cpu": 2048, "cuda": 8192}  # rows of the product that is measured
MATRIX_SECONDS = 1.0


@dataclass(frozen=True)
class StageFigures:
    """What some steps of a stage took on one process."""

    images_per_second: float
    step_seconds: float
    # Share of the time that the trainer waited for its loader.
    data_wait: float
    # The most that the process held; on a GPU of its memory.
    peak_bytes: int
    attention: str


def check_stage(config: Config, name: str) -> None:
    """Raises UserError for a stage that this run does not have."""
    options = {"align", "autoencoder", "layout", "refine"}
    if name not in options:
        raise UserError(f"there is no stage {name!r}; choose of {', '.join(sorted(options))}.")
    if name == "layout" and config.layout.kind == "none":
        raise UserError("layout.kind is none: this run has no layout stage; measure refine.")


def thrown_away(config: Config, name: str, steps: int, folder: str) -> Config:
    """The config for so many steps of one stage, in a directory of its own, without images and checkpoints."""
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
    return replace(config, name="measured", runs=folder, resume="auto", trainer=trainer, train=train)


def measure_stage(config: Config, name: str, steps: int, warmup: int) -> StageFigures:
    """Trains a stage from parts that no earlier one has trained: `warmup` steps that do not count and `steps` that do.

    One process. Raises UserError as a run would.
    """
    check_stage(config, name)
    with tempfile.TemporaryDirectory(prefix="vlad-measured-") as folder:
        clock, attention = _time(thrown_away(config, name, warmup + steps, folder), name, warmup)
    images = config.data.batch_size * getattr(config.train, name).accumulate_batches
    seconds = clock.seconds / steps
    return StageFigures(images / seconds, seconds, clock.waited / clock.seconds, clock.peak_bytes, attention)


def _time(config: Config, name: str, warmup: int) -> tuple[StepClock, str]:
    quieten()
    sets = validate(config).shards
    parts, config = training_parts(config)
    precision, device = stage_precision(config, name)[0], run_device(config)
    optim: OptimOptions = getattr(config.train, name)
    check_optimizer(optim, device)
    line = set_switches(config, parts, device, computed_in(precision))
    stage, phases = build_stage(config, parts, name, sets, "")
    data = ShardDataModule(
        sets if config.data.cache is None else cached_sets(config, parts, sets),
        config.data.stream(distributed.derived_seed(config.seed, name)),
        optim.steps * optim.accumulate_batches,
        config.directory / "quarantine.jsonl",
    )
    (config.directory / name).mkdir(parents=True)
    built = build_trainer(config, name, "[measured]", StopOnSignal(), None, None, phases, adaptable(parts), None)
    clock = StepClock(warmup)
    built.add(clock)
    set_modes(stage)
    with stored(stage, precision):
        built.trainer.fit(stage, datamodule=data)
    return clock, line.removeprefix("attention: ")


def count_flops(config: Config, name: str) -> float:
    """Floating-point operations of a training step (forward and backward) for one image."""
    check_stage(config, name)
    sets = open_sets(config.data.sets, config.data.fetch)
    device = run_device(config)
    parts, config = training_parts(config)
    if name not in stage_names(config, parts):
        raise UserError(f"this run has no stage {name}; it has {', '.join(stage_names(config, parts))}.")
    stage: Any = build_stage(config, parts, name, sets, "")[0].to(device)
    set_modes(stage)
    unets = [unet for unet in (parts.layout_unet, parts.refine_unet) if unet is not None]
    set_attention(unets, "sdpa", device)
    batch = collate(first_samples(sets, config.data.stream(config.seed), COUNTED_IMAGES)).to(device)
    for log in ("log", "log_dict"):
        setattr(stage, log, lambda *_, **__: None)  # no trainer listens
    dtype = computed_in(stage_precision(config, name)[0])
    counter = FlopCounterMode(display=False)
    # Written out, as the counter does not know every fused kernel.
    with counter, sdpa_kernel(SDPBackend.MATH), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        stage.training_step(batch, 0).backward()
    return counter.get_total_flops() / COUNTED_IMAGES


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of one large square matrix product: the best of about a second's tries."""
    side = MATRIX[device.type]
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    best, until = float("inf"), time.perf_counter() + MATRIX_SECONDS
    a @ b
    while time.perf_counter() < until:
        _wait(device)
        started = time.perf_counter()
        a @ b
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
