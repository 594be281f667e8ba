"""A training run from config to pipeline: validate, build the models, train the stages in order, publish.

runs/NAME/
  config.yaml            the resolved config
  STAGE/checkpoints/     step-*.ckpt of a stage under way (removed when it is finished)
  STAGE/logs/            TensorBoard and CSV
  STAGE/trained.safetensors, STAGE/metrics.json
                         what the stage has trained (averaged), and its last losses, images/s, seconds
  samples/STAGE/         sample grids during training
  pipeline/              all parts in diffusers' format
  prior/                 images that the base generates, for prior preservation
  adapter/               peft adapters: the result of a LoRA run on a base, beside the result of others
  text/                  runs of L_align alone: LVLM, CCM and alignment heads, for text_base
  report.html            the run on one page; starts.jsonl: what it was started with
  quarantine.jsonl       samples that could not be used
  .lock                  held by the process that trains here
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from vlad.config.load import save_config
from vlad.config.schema import Config
from vlad.reports.quarantined import QUARANTINE, quarantined
from vlad.reports.run_report import write_run_report
from vlad.reports.starts import changes_since_last_start, record_start
from vlad.training.build import seeded_parts
from vlad.training.build_stage import stage_names
from vlad.training.callbacks.stop_on_signal import StopOnSignal
from vlad.training.devices import is_sharded_run, run_device, sharding_ranks
from vlad.training.fit_stage import Run, failures_reported, fit_stage
from vlad.training.memory_plan import memory_line
from vlad.training.memory_savers import configure_models, remove_compilation
from vlad.training.parts import Parts
from vlad.training.precision import computed_in, stage_precision
from vlad.training.prior_preservation import with_prior
from vlad.training.provenance import describe_start
from vlad.training.publish import publish_run
from vlad.training.resume import freely_changed, listed
from vlad.training.run_data import RunData
from vlad.training.validate import check_stages, validate
from vlad.utils.distributed import is_main_process, launch_rank
from vlad.utils.errors import counted
from vlad.utils.launcher import forget_stray_ranks, run_process
from vlad.utils.locks import directory_lock
from vlad.utils.paths import writable_directory


@dataclass(frozen=True)
class RunResult:
    """How a run ended: finished, or stopped by a signal with its checkpoint saved."""

    directory: Path
    finished: bool


def train(config: Config, callbacks: Sequence[L.Callback] = (), loggers: Sequence[Logger] = ()) -> RunResult:
    """Trains every stage of a run that is not finished, and publishes the result; a started run resumes.

    Args:
        config: as `load_config` reads it.
        callbacks: Lightning callbacks of your own. The same ones serve all stages, called after those of the run, and
            before the checkpoint that keeps their state.
        loggers: Lightning loggers of your own, beside CSV and TensorBoard.

    Raises:
        UserError: before any long work for what cannot run here; later for a full disk or memory.
    """
    silence_libraries()
    forget_stray_ranks()
    # Lightning's, which it read from the environment when it was imported.
    rank_zero_only.rank = launch_rank()  # type: ignore[attr-defined]
    data = validate(config)
    directory = writable_directory(config.directory, "the run", needed_bytes=200_000_000)
    with contextlib.ExitStack() as stack:
        if is_main_process():  # the other ranks of a launch work on the same run
            stack.enter_context(directory_lock(directory, "a run"))
        stack.enter_context(run_process())
        torch.use_deterministic_algorithms(True, warn_only=True)

        parts, built_config = seeded_parts(config)  # the config with what a base brings along
        stages = tuple(stage_names(built_config, parts))
        check_stages(built_config, stages, data)
        memory = memory_line(built_config, parts, stages, sharding_ranks(config)) if is_main_process() else None
        attention = _configure(built_config, parts, stages)
        if is_main_process():
            _keep_config(config)
        data = with_prior(built_config, data)
        if is_main_process():
            _record_start(config, data, attention, memory)

        with StopOnSignal() as stop:
            run = Run(built_config, parts, data, stages, stop, tuple(callbacks), tuple(loggers))
            for name in stages:
                if not fit_stage(run, name):
                    _report_quarantined(config)
                    return RunResult(directory, finished=False)
                if is_sharded_run(config):
                    run = _reload(config, run, name)

        remove_compilation(run.parts.unets)
        if is_main_process():
            with failures_reported(f"{config.name}:", directory):
                publish_run(built_config, run.parts)
                write_run_report(directory)
        _report_quarantined(config)
        return RunResult(directory, finished=True)


def _report_quarantined(config: Config) -> None:
    found = quarantined(config.directory)
    if found.counts and is_main_process():
        count = counted(found.counts.total(), "sample")
        print(f"{config.name}: {count} could not be used ({QUARANTINE} names them all):", file=sys.stderr)
        print("\n".join(found.lines()), file=sys.stderr)


def silence_libraries() -> None:
    """Silences what libraries say at start that nobody can act on; our own line says what matters."""
    warnings.filterwarnings("ignore", module=r"(lightning|torch|diffusers|transformers|peft).*")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _configure(config: Config, parts: Parts, stages: Sequence[str]) -> str:
    dtype = computed_in(stage_precision(config, stages[-1])[0])
    return configure_models(config, parts, run_device(config), dtype)


def _keep_config(config: Config) -> None:
    """Claims the directory for this config: only now, as a call that cannot work must not."""
    path = config.directory / "config.yaml"
    if not path.is_file():
        save_config(config, path)


def _record_start(config: Config, data: RunData, attention: str, memory: str | None) -> None:
    """Prints what starts here, and what has changed since the last start, and records it for the run's page."""
    found = f"{counted(data.shards.samples, 'sample')} in {counted(data.shards.shards, 'shard')}"
    print(f"{config.name}: {found}; {attention}", file=sys.stderr)
    for index in data.shards.indexes:
        if index.passed_over.counts:
            count = counted(index.passed_over.counts.total(), "member")
            print(f"{config.name}: {count} of the shards passed over:", file=sys.stderr)
            print("\n".join(index.passed_over.lines()), file=sys.stderr)
    if memory is not None:
        print(memory, file=sys.stderr)
    start = {**describe_start(), "attention": attention.removeprefix("attention: ")}
    for before, changed in (
        ("config.yaml", freely_changed(config)),
        ("its last start", changes_since_last_start(config.directory, start)),
    ):
        if changed:
            print(f"{config.name}: not as in {before}: {listed(changed)}", file=sys.stderr)
    record_start(config.directory, start)


def _reload(config: Config, run: Run, last: str) -> Run:
    """The run with whole modules again, from its files: after a sharded stage each rank holds parts of them."""
    parts, _ = seeded_parts(config)
    run = replace(run, parts=parts)
    for finished in run.stages[: run.stages.index(last) + 1]:
        fit_stage(run, finished)
    _configure(run.config, parts, run.stages)
    return run
