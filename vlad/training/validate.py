"""`validate(config)`: every check across options, machine, run directory and data, before any long work.

    check_config          contradictions of options          (vlad/config/checks.py, without torch)
    check_machine         device, processes, launcher, optional packages
    check_run_directory   a run of another config, a checkpoint to begin from
    check_data            shards, held-out split, cached latents, prompts of a prior
    check_stages          precision, optimiser, annotated text: known once the models are read

The doctor reports each of them. `vlad benchmark train` writes no run directory and leaves out that check; `vlad plan`
works before there are shards, for another machine: check_config and check_sharding; `vlad cache` trains nothing:
check_config and check_data. What stands behind them checks nothing again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vlad.config.checks import check_config
from vlad.config.schema import Config
from vlad.config.training import STAGES
from vlad.data.latent_cache.precompute import data_fingerprint, open_cache
from vlad.data.shard_sets import check_enough_samples
from vlad.lora.quantise import check_quantisation
from vlad.losses.extra.ocr_perceptual import check_recogniser
from vlad.training.devices import is_sharded_run, local_processes, run_device, total_processes
from vlad.training.loggers import check_wandb
from vlad.training.optim import check_optimizer
from vlad.training.precision import stage_precision
from vlad.training.prior_preservation import read_prompts
from vlad.training.resume import check_run_directory
from vlad.training.run_data import RunData, open_data, refuse_without_text
from vlad.utils.errors import UserError, counted
from vlad.utils.launcher import check_launch


def validate(config: Config) -> RunData:
    """Raises UserError for the first thing that a run of this config cannot do here; returns its data, opened."""
    check_config(config)
    check_machine(config)
    check_run_directory(config)
    return check_data(config)


def check_data(config: Config) -> RunData:
    """Opens the data of a run. Raises UserError for missing shards, too few samples, a cache of another run."""
    data = open_data(config)
    check_enough_samples(data.shards, config.data.batch_size, total_processes(config))
    if config.data.cache is not None:
        open_cache(config.data.cache, data_fingerprint(data.shards, config.data.stream(config.seed)), partly=True)
    if config.prior.images and config.prior.prompts is not None:
        read_prompts(config.prior.prompts)
    return data


def check_machine(config: Config) -> None:
    """Raises UserError for devices, processes and packages that this machine does not have."""
    _check_gpus(config)
    check_launch(config.trainer.nodes, local_processes(config))
    check_sharding(config)
    check_wandb(config.trainer.wandb)
    if config.lora is not None and config.lora.base_bits is not None:
        check_quantisation()
    if config.losses.ocr_weight:
        check_recogniser()


def check_sharding(config: Config) -> None:
    """Raises UserError for options that do not go with weights shared by several processes."""
    if not is_sharded_run(config):
        return
    what = None
    if config.lora is not None or config.text_training.components("lora"):
        what = "adapters are small enough for every rank: train them with trainer.strategy=ddp"
    elif len(config.text_training.phases) > 1:
        what = "what is trained cannot change on the way: leave out trainable's phases, or use trainer.strategy=ddp"
    elif config.trainer.compile != "none":
        what = "compiled and sharded blocks are not tried together yet: set trainer.compile=none"
    elif any(getattr(config.train, stage).optimizer == "adamw-8bit" for stage in STAGES):
        what = "8-bit moments do not know shards: set the stages' optimizer to adamw"
    elif config.validation.share:
        what = "validation passes run on one rank: leave out validation.share, or use trainer.strategy=ddp"
    elif "16-mixed" in {config.trainer.precision, *(getattr(config.train, stage).precision for stage in STAGES)}:
        what = "there is no loss scaler for shards: use bf16-mixed or 32-true"
    if what is not None:
        raise UserError(f"trainer.strategy: fsdp: {what}.")


def check_stages(config: Config, stages: Sequence[str], data: RunData) -> None:
    """Raises UserError for stages that cannot be trained here; the config is that with what a base brings along."""
    refuse_without_text(config, data.shards)
    for name in stages:
        stage_precision(config, name)
        check_optimizer(getattr(config.train, name), run_device(config))


def _check_gpus(config: Config) -> None:
    if config.trainer.accelerator == "cpu":
        return
    there = torch.cuda.device_count()
    if config.trainer.accelerator == "gpu" and run_device(config).type == "cpu":
        raise UserError("trainer.accelerator: there is no GPU that torch can use here; set it to auto or cpu.")
    if 0 < there < local_processes(config):
        raise UserError(
            f"trainer.devices is {local_processes(config)}, and torch finds {counted(there, 'GPU')} here; set it to"
            f" auto, or to {there} at most."
        )
