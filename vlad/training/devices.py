"""Processes and devices of a run: how many processes train, on what, and whether they share the weights."""

from __future__ import annotations

import torch

from vlad.config.schema import Config
from vlad.utils.hardware import best_device


def local_processes(config: Config) -> int:
    """Processes on this machine: trainer.devices, where auto is one a GPU, or one without a GPU."""
    if config.trainer.devices != "auto":
        return int(config.trainer.devices)
    return max(1, torch.cuda.device_count()) if config.trainer.accelerator != "cpu" else 1


def total_processes(config: Config) -> int:
    """Processes on all machines."""
    return local_processes(config) * config.trainer.nodes


def is_sharded_run(config: Config) -> bool:
    """Whether several processes share the weights; with one process `fsdp` changes nothing."""
    return config.trainer.strategy == "fsdp" and total_processes(config) > 1


def sharding_ranks(config: Config) -> int:
    """How many processes share what is sharded; 1 where each holds everything."""
    return total_processes(config) if is_sharded_run(config) else 1


def run_device(config: Config) -> torch.device:
    """The device that a run's processes compute on."""
    return best_device(config.trainer.accelerator)
