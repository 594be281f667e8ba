"""About how much memory a stage of a config takes on each device, from its parts and one small step.

weights      what every part holds, as it is stored
training     of each trained parameter: gradient, moments, averages
activations  what a step's backward pass waits for, measured with two pictures and scaled to the batch
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlad.config import Config
from vlad.data.stream import ShardSets, collate, first_samples
from vlad.distributed import derived_seed
from vlad.launch import build_stage, stored
from vlad.stage_trainer import is_sharded_run, stage_precision
from vlad.training.optim import OptimOptions
from vlad.training.precision import computed_in
from vlad.training.stages import Parts, Stage, set_modes

MEASURED_IMAGES = 2


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process."""

    weights: int
    training: int
    activations: int
    # How many parameters are trained, on all ranks together.
    trained: int

    @property
    def total(self) -> int:
        return self.weights + self.training + self.activations


def averages_of(optim: OptimOptions) -> int:
    """How many averages of its weights a stage keeps."""
    return 1 + len(optim.ema_half_lives) + len(optim.ema_power_widths)


def moment_bytes(optim: OptimOptions) -> int:
    """Bytes of the optimiser's moments, a parameter."""
    return 2 if optim.optimizer == "adamw-8bit" else 8


def estimate_memory(config: Config, parts: Parts, name: str, sets: ShardSets, ranks: int) -> MemoryEstimate:
    """The estimate of a stage; `ranks` share what is sharded. Leaves the parts as it found them, but for their modes.

    Trains nothing; on the CPU, whatever the run computes on. Raises UserError as the stage would.
    """
    optim: OptimOptions = getattr(config.train, name)
    stage, _ = build_stage(config, parts, name, sets, "")
    set_modes(stage)
    trained = [parameter for parameter in stage.parameters() if parameter.requires_grad]
    each = 4 + moment_bytes(optim) + (0 if optim.ema_on_cpu else 4 * averages_of(optim))
    count = sum(parameter.numel() for parameter in trained)
    training = each * count
    precision = stage_precision(config, name)[0]
    with stored(stage, precision):
        weights = sum(parameter.nbytes for parameter in stage.parameters())
        activations = _activation_bytes(config, stage, sets, computed_in(precision))
    shared = ranks if is_sharded_run(config) else 1
    return MemoryEstimate(weights // shared, training // shared, activations * config.data.batch_size, count)


def half_trained(config: Config, parts: Parts, name: str, sets: ShardSets) -> list[str]:
    """The names of the parameters that a stage trains and that are stored in half precision."""
    stage, _ = build_stage(config, parts, name, sets, "")
    halves = (torch.bfloat16, torch.float16)
    return [other for other, p in stage.named_parameters() if p.requires_grad and p.dtype in halves]


def _activation_bytes(config: Config, stage: Stage, sets: ShardSets, dtype: torch.dtype) -> int:
    """What the backward pass of one picture waits for."""
    own = {parameter.untyped_storage().data_ptr() for parameter in stage.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = collate(first_samples(sets, config.data.stream(config.seed), MEASURED_IMAGES))
    quiet: Any = stage
    for log in ("log", "log_dict"):
        quiet.__dict__[log] = lambda *_, **__: None  # no trainer listens
    try:
        with torch.random.fork_rng(devices=[]), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            torch.manual_seed(derived_seed(config.seed, "doctor"))
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = stage.training_step(batch, 0)
        del loss
    finally:
        for log in ("log", "log_dict"):
            del quiet.__dict__[log]
    return sum(kept.values()) // MEASURED_IMAGES


def checkpoint_bytes(trained: int, optim: OptimOptions) -> int:
    """What a checkpoint of so many trained parameters takes: weights, moments, averages."""
    return trained * (4 + moment_bytes(optim) + 4 * averages_of(optim))
