"""One stage of a run, top to bottom: module, data, checkpoint to resume from, callbacks, trainer, fit, publish.

An optimiser step in order; Lightning calls the callbacks of an event in the order of `stage_callbacks`:

    before the batch     SeedEachBatch seeds torch; TextPhases freezes components of the text side
    loss                 `training_step` of stages.py
    backward             gradients are averaged over the ranks
    before the update    GradientGuard clips, or skips a step whose loss or gradient is not finite
    update               AdamW, learning rate
    after the batch      StopOnSignal: all ranks agree to stop; EMA moves; Progress; SampleGrid, RetrievalScores,
                         Validation (may stop); AdapterCheckpoints; StepMetrics; RefreshRunPage; the caller's own
                         callbacks; Checkpoints
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import lightning as L
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, Strategy

from vlad.config.schema import Config
from vlad.config.training import OptimOptions
from vlad.lora.inject import has_adapter
from vlad.reports.quarantined import QUARANTINE
from vlad.training.add_adapters import published_adapters
from vlad.training.build_stage import BuiltStage, build_stage
from vlad.training.caching import cached_sets
from vlad.training.callbacks.adapter_checkpoints import AdapterCheckpoints
from vlad.training.callbacks.checkpointing import Checkpoints, CheckpointWriter
from vlad.training.callbacks.ema import EMA
from vlad.training.callbacks.gradient_guard import GradientGuard
from vlad.training.callbacks.metrics_logging import StepMetrics
from vlad.training.callbacks.periodic_evaluation import takes_part
from vlad.training.callbacks.progress import Progress
from vlad.training.callbacks.rank_watch import RankWatch
from vlad.training.callbacks.retrieval_scores import RetrievalScores
from vlad.training.callbacks.run_page import RefreshRunPage
from vlad.training.callbacks.sample_grid import SampleGrid
from vlad.training.callbacks.seeding import SeedEachBatch
from vlad.training.callbacks.stop_on_signal import StopOnSignal
from vlad.training.callbacks.validation import HeldOutEvaluation, Validation
from vlad.training.checkpoint import prune_checkpoints, remove_damaged, remove_partial
from vlad.training.datamodule import ShardDataModule
from vlad.training.devices import is_sharded_run, local_processes, total_processes
from vlad.training.fsdp import ShardedStrategy
from vlad.training.loggers import build_loggers
from vlad.training.memory_savers import cast_frozen_weights
from vlad.training.parts import Parts
from vlad.training.precision import autocast_of, stage_precision
from vlad.training.publish import adapter_recipe, load_published_stage, publish_stage
from vlad.training.resume import config_record, finished_stage, starting_checkpoint
from vlad.training.run_data import RunData
from vlad.training.stages import Stage, set_modes
from vlad.utils.atomic_files import write_json
from vlad.utils.distributed import derived_seed, is_main_process
from vlad.utils.errors import UserError
from vlad.utils.failures import user_errors
from vlad.utils.launcher import current_launch


@dataclass(frozen=True)
class Run:
    """What the stages of a run share. `callbacks` and `loggers` are the caller's own."""

    config: Config
    parts: Parts
    data: RunData
    stages: tuple[str, ...]
    stop: StopOnSignal
    callbacks: tuple[L.Callback, ...] = ()
    loggers: tuple[Logger, ...] = ()

    def label(self, name: str) -> str:
        """How messages about a stage begin."""
        return f"[{self.stages.index(name) + 1}/{len(self.stages)} {name}]"


@dataclass(frozen=True)
class StageCallbacks:
    """The callbacks of a stage in their order, and those of them that the stage asks afterwards."""

    in_order: list[L.Callback]
    guard: GradientGuard
    ema: EMA
    progress: Progress
    retrieval: RetrievalScores | None
    validation: Validation | None
    checkpoints: Checkpoints

    def metrics(self, trainer: L.Trainer) -> dict[str, float]:
        """The last figures of the stage: smoothed losses, rate, seconds, skipped steps, validation."""
        metrics = self.progress.summary(trainer)
        metrics["saving_wait"] = self.checkpoints.waited_seconds / max(1e-9, metrics["seconds"])
        metrics["skipped_steps"] = self.guard.skipped
        return metrics | ({} if self.validation is None else self.validation.metrics())


def fit_stage(run: Run, name: str) -> bool:
    """Trains a stage to its end and publishes it, or until a signal; returns whether it is finished."""
    config, label, directory = run.config, run.label(name), run.config.directory / name
    built = build_stage(config, run.parts, name, run.data.shards, label)
    stage = built.module
    if (finished := finished_stage(config, name, run.stages)) is not None:
        _take_over(stage, finished, directory)
        return True

    (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
    data = stage_data(run, name)
    if is_main_process():
        remove_partial(directory / "checkpoints")
    resumed = starting_checkpoint(config, name, label, is_main_process())
    callbacks = stage_callbacks(run, name, built)
    trainer = stage_trainer(run, name, callbacks, resumed)
    set_modes(stage)
    precision = stage_precision(config, name)[0]
    with failures_reported(label, directory), cast_frozen_weights(stage, stage.trained_names(), precision):
        _fit(trainer, stage, data, resumed)

    if run.stop.stopped and trainer.global_step < stage.optim.steps:
        if (error := callbacks.checkpoints.error()) is not None:
            raise error
        return False
    if callbacks.guard.skipped >= stage.optim.steps > 0:
        raise UserError(
            f"{label} every step was skipped, as its loss or gradient was not finite: nothing is learned. Look at"
            f" {directory / 'nonfinite'}, and lower the learning rate or train in a wider precision."
        )
    callbacks.ema.copy_to(stage)
    if callbacks.validation is not None:
        callbacks.validation.restore_best(stage)
    stage.eval()
    with failures_reported(label, directory):
        _publish(config, name, stage, trainer, callbacks)
    trainer.strategy.barrier()
    return True


def _fit(trainer: L.Trainer, stage: Stage, data: ShardDataModule, resumed: Path | None) -> None:
    """Lightning's fit. Raises KeyboardInterrupt for a second Ctrl-C, which Lightning makes an exit with code 1."""
    try:
        trainer.fit(stage, datamodule=data, ckpt_path=resumed, weights_only=True)
    except SystemExit as ended:
        if isinstance(ended.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from ended
        raise


def stage_data(run: Run, name: str) -> ShardDataModule:
    """The batches of a stage; its seed differs from the other stages'."""
    config, optim = run.config, getattr(run.config.train, name)
    sets = run.data.training
    return ShardDataModule(
        sets if config.data.cache is None else cached_sets(config, run.parts, sets),
        config.data.stream(derived_seed(config.seed, name)),
        optim.steps * optim.accumulate_batches,
        config.directory / QUARANTINE,
    )


def stage_callbacks(run: Run, name: str, built: BuiltStage) -> StageCallbacks:
    """All callbacks of a stage. Their order is that of the events after a batch; the module's head shows a step."""
    config, parts, data = run.config, run.parts, run.data
    options, label, directory = config.trainer, run.label(name), config.directory / name
    optim: OptimOptions = getattr(config.train, name)
    images_per_step = config.data.batch_size * optim.accumulate_batches * total_processes(config)

    guard = GradientGuard(directory / "nonfinite", optim.clip_grad_norm, options.on_nonfinite)
    ema = EMA(
        optim.ema_decay,
        optim.ema_half_lives,
        optim.ema_power_widths,
        optim.ema_snapshot_every_steps,
        directory,
        optim.ema_on_cpu,
    )
    progress = Progress(label, images_per_step, optim.steps)
    generates = name in ("layout", "refine")
    grid = SampleGrid(config, parts, data.shards, name, ema) if generates and options.sample_every_steps else None
    retrieval = validation = adapters = None
    if built.phases is not None and data.pairs is not None and config.losses.align_weight:
        retrieval = RetrievalScores(config, parts, data.pairs, name, ema)
    if generates and data.held_out is not None:
        evaluation = HeldOutEvaluation(config, parts, data.shards, data.held_out, name)
        validation = Validation(directory, config.validation, ema, evaluation, label)
    modules = published_adapters(config, parts)
    if any(has_adapter(module) for module in modules.values()):
        every_steps, recipe = options.checkpoint_every_steps, adapter_recipe(config)
        adapters = AdapterCheckpoints(modules, directory / "adapter", every_steps, ema, recipe)
    writer = CheckpointWriter(
        options.keep_checkpoints,
        options.keep_every_steps,
        options.background_saving,
        sharded=is_sharded_run(config),
        patience_seconds=60 * options.timeout_minutes,
    )
    checkpoints = Checkpoints(
        directory / "checkpoints",
        writer,
        options.checkpoint_every_steps,
        options.on_save_failure,
        run.stop,
        config_record(config, name),
    )
    in_order: list[L.Callback | None] = [
        SeedEachBatch(config.seed, name),  # before anything draws random numbers
        built.phases,
        run.stop,  # before the checkpoint of a last step is due
        guard,
        ema,  # before all that looks at the averaged weights
        progress,
        grid,
        retrieval,
        validation,  # may end the stage: before the last checkpoint
        adapters,
        StepMetrics(options.log_every_steps, images_per_step),
        RefreshRunPage(config.directory, options.sample_every_steps),  # shows what the ones above have logged
        *run.callbacks,
        checkpoints,  # after all that keep state, which it saves
        RankWatch(config.directory, writer.wait),
    ]
    there = [callback for callback in in_order if callback is not None]
    return StageCallbacks(there, guard, ema, progress, retrieval, validation, checkpoints)


def stage_trainer(run: Run, name: str, callbacks: StageCallbacks, resumed: Path | None) -> L.Trainer:
    """Lightning's trainer of a stage that starts from the checkpoint `resumed` (None: from its beginning)."""
    config, directory = run.config, run.config.directory / name
    options, optim = config.trainer, getattr(config.train, name)
    precision, note = stage_precision(config, name)
    if note is not None and is_main_process():
        print(f"{run.label(name)} {note}", file=sys.stderr)
    start = f"from-{resumed.stem}" if resumed is not None else "from-step-00000000"
    return L.Trainer(
        accelerator=options.accelerator,
        devices=local_processes(config),
        num_nodes=options.nodes,
        strategy=_strategy(config, name),
        precision=autocast_of(precision),
        max_steps=optim.steps,
        accumulate_grad_batches=optim.accumulate_batches,
        callbacks=callbacks.in_order,
        plugins=[callbacks.checkpoints.writer, _processes()],
        logger=[*build_loggers(directory, config.name, start, options.wandb), *run.loggers],
        log_every_n_steps=options.log_every_steps,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _processes() -> ClusterEnvironment:
    """Lightning's view of the launch: ours, where left alone it would find others by their variables."""
    launcher = current_launch().launcher
    if launcher == "torchrun":
        return TorchElasticEnvironment()
    if launcher == "srun":
        return SLURMEnvironment()
    return LightningEnvironment()


def failures_reported(label: str, directory: Path) -> contextlib.AbstractContextManager[None]:
    """Inside the block a lack of memory or disk space, and a lost data-loading worker, raise UserError."""
    again = "run the same command again: it resumes from the last checkpoint"
    return user_errors(
        label,
        memory="python tools/plan.py with the same config says what would make it fit, data.batch_size first",
        worker=f"the machine's memory may be full: lower data.workers or data.batch_size and {again}",
        port="set MASTER_PORT to a free one for all processes and start them again",
        disk=f"make room on the disk of {directory} and {again}",
    )


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


def _take_over(stage: Stage, finished: Path, directory: Path) -> None:
    """Loads a finished stage from its folder; where that is another run's, publishes it in this one's too."""
    load_published_stage(stage, finished)
    if finished != directory and is_main_process():
        publish_stage(stage, directory)
        shutil.copyfile(finished / "metrics.json", directory / "metrics.json")


def _publish(config: Config, name: str, stage: Stage, trainer: L.Trainer, callbacks: StageCallbacks) -> None:
    """Writes weights, averages and figures of a finished stage, then removes its checkpoints. All ranks call."""
    directory = config.directory / name
    publish_stage(stage, directory)
    callbacks.ema.publish(stage, directory)
    metrics = callbacks.metrics(trainer)
    if callbacks.retrieval is not None and takes_part(trainer, stage):
        metrics |= callbacks.retrieval.evaluate(callbacks.retrieval.directory / "final.png")
    if is_main_process():
        write_json(directory / "metrics.json", metrics)  # its presence says that the stage is finished
        checkpoints = directory / "checkpoints"
        prune_checkpoints(checkpoints, 0, config.trainer.keep_every_steps)
        remove_damaged(checkpoints)
        if not any(checkpoints.iterdir()):
            checkpoints.rmdir()
