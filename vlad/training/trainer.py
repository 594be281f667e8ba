"""The trainer of one stage: Lightning's, with the callbacks that this run's options ask for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn

from vlad.config.schema import Config
from vlad.config.training import OptimOptions
from vlad.lora.inject import has_adapter
from vlad.reports.run_report import write_run_report
from vlad.training.callbacks.adapter_saves import AdapterSaves
from vlad.training.callbacks.checkpointing import Checkpoints, CheckpointWriter
from vlad.training.callbacks.ema import ExponentialAverage
from vlad.training.callbacks.gradient_guard import GradientGuard
from vlad.training.callbacks.metrics_logging import Watch
from vlad.training.callbacks.phases import TextPhases
from vlad.training.callbacks.progress import Measured, Progress, RefreshReport, SampleGrid, SeedEachBatch, StopOnSignal
from vlad.training.callbacks.rank_watch import RankWatch
from vlad.training.callbacks.validation import EarlyStopping, Look
from vlad.training.devices import is_sharded_run, local_processes, total_processes
from vlad.training.fsdp import ShardedStrategy
from vlad.training.loggers import build_loggers
from vlad.training.precision import autocast_of, stage_precision
from vlad.training.resume import config_record
from vlad.utils.distributed import is_main_process


@dataclass(frozen=True)
class StageTrainer:
    """Lightning's trainer, and those of its callbacks that the run asks afterwards."""

    trainer: L.Trainer
    average: ExponentialAverage
    guard: GradientGuard
    progress: Progress
    saving: Checkpoints
    # Where images are held out.
    stopping: EarlyStopping | None = None

    def add(self, callback: L.Callback) -> None:
        """One callback more, after all others."""
        self.trainer.callbacks.append(callback)  # type: ignore[attr-defined]

    def metrics(self) -> dict[str, float]:
        """The last figures of the stage: smoothed losses, rate, seconds, steps that were left out."""
        looks = {} if self.stopping is None else self.stopping.metrics()
        found = self.progress.summary(self.trainer)
        waited = self.saving.waited_seconds / max(1e-9, found["seconds"])
        return {**found, "saving_wait": waited, "skipped_steps": self.guard.skipped, **looks}


def build_trainer(
    config: Config,
    name: str,
    label: str,
    stop: StopOnSignal,
    draw: Callable[[Path], dict[str, float]] | None,
    measure: Callable[[Path], dict[str, float]] | None,
    phases: TextPhases | None,
    adaptable: Mapping[str, nn.Module | None],
    begins_at: Path | None,
    look: Callable[[Any], Look] | None = None,
    adapter_about: Mapping[str, Any] | None = None,
) -> StageTrainer:
    """The trainer of the stage `name`.

    `draw` makes its sample grids, `measure` its figures on held-out samples, `phases` say what it trains of the text
    side, `adaptable` are the modules whose adapters are saved on the way; `begins_at` is the checkpoint it starts from;
    `look` measures held-out images, `adapter_about` goes into the adapters' files.
    """
    options, directory = config.trainer, config.directory / name
    optim: OptimOptions = getattr(config.train, name)
    average = ExponentialAverage(
        optim.ema_decay,
        optim.ema_half_lives,
        optim.ema_power_widths,
        optim.ema_snapshot_every_steps,
        directory,
        optim.ema_on_cpu,
    )
    precision, note = stage_precision(config, name)
    if note is not None and is_main_process():
        print(f"{label} {note}", file=sys.stderr)
    images_per_step = config.data.batch_size * optim.accumulate_batches * total_processes(config)
    progress = Progress(label, images_per_step, optim.steps)
    guard = GradientGuard(directory / "nonfinite", optim.clip_grad_norm, options.on_nonfinite)
    writer = CheckpointWriter(
        options.keep_checkpoints,
        options.keep_every_steps,
        options.background_saving,
        sharded=is_sharded_run(config),
        patience_seconds=60 * options.timeout_minutes,
    )
    saving = Checkpoints(
        directory / "checkpoints",
        writer,
        options.checkpoint_every_steps,
        options.on_save_failure,
        stop,
        config_record(config, name),
    )
    callbacks: list[L.Callback] = [SeedEachBatch(config.seed, name), stop, guard, average, progress]
    samples = config.directory / "samples" / name
    if draw is not None:
        callbacks.append(SampleGrid(samples, options.sample_every_steps, average, draw))
    if phases is not None:
        callbacks.append(phases)
    if measure is not None:
        callbacks.append(Measured(samples / "shared-space", options.sample_every_steps, average, measure))
    stopping = None
    if look is not None:
        stopping = EarlyStopping(directory, config.validation, average, look, label)
        callbacks.append(stopping)
    if any(has_adapter(module) for module in adaptable.values()):
        saves = AdapterSaves(
            adaptable, directory / "adapter", options.checkpoint_every_steps, average, adapter_about or {}
        )
        callbacks.append(saves)
    callbacks.append(Watch(options.log_every_steps, images_per_step))
    callbacks.append(RefreshReport(options.sample_every_steps, lambda: write_run_report(config.directory)))
    callbacks += [saving, RankWatch(config.directory, writer.wait)]
    start = f"from-{begins_at.stem}" if begins_at is not None else "from-step-00000000"
    trainer = L.Trainer(
        accelerator=options.accelerator,
        devices=local_processes(config),
        num_nodes=options.nodes,
        strategy=_strategy(config, name),
        precision=autocast_of(precision),
        max_steps=optim.steps,
        accumulate_grad_batches=optim.accumulate_batches,
        callbacks=callbacks,
        plugins=[writer],
        logger=build_loggers(directory, config.name, start, options.wandb),
        log_every_n_steps=options.log_every_steps,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    return StageTrainer(trainer, average, guard, progress, saving, stopping)


def _strategy(config: Config, name: str) -> Strategy | str:
    """DDP or FSDP where several processes train, which gives up on a rank that does not answer."""
    if total_processes(config) == 1:
        return "auto"
    timeout = timedelta(minutes=config.trainer.timeout_minutes)
    if is_sharded_run(config):
        return ShardedStrategy(timeout=timeout)
    # L_align reads the pooled vector alone, and a phase freezes what another one trains.
    unused = name == "align" or len(config.text_training.phases) > 1
    # Gradients lie in the buckets that are sent: copies beside them would take as much memory again.
    return DDPStrategy(timeout=timeout, find_unused_parameters=unused, gradient_as_bucket_view=True)
