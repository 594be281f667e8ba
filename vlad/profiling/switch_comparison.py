"""Comparison of training switches: throughput with one more switch in each row of a table.

Every row keeps the switches of the rows above it.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from vlad.config.checks import check_config
from vlad.config.load import load_config
from vlad.config.schema import Config
from vlad.profiling.training_throughput import StageFigures, check_stage, count_flops, matrix_rate, measure_stage
from vlad.training.devices import run_device
from vlad.training.precision import computed_in, stage_precision
from vlad.training.validate import check_data, check_machine
from vlad.utils.errors import UserError

SWITCHES = ("plain", "attention", "channels_last", "compile", "cache", "batch")


@dataclass(frozen=True)
class ComparisonRow:
    """A line of the table: figures, or why there are none."""

    label: str
    figures: StageFigures | None = None
    flops_per_image: float = 0.0
    mfu: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class StageCall:
    """A stage of a config as the command line names it: what a new process needs to load it."""

    path: str
    overrides: tuple[str, ...]
    stage: str

    def config(self) -> Config:
        """The config; raises UserError as `load_config` does."""
        return load_config(self.path, self.overrides)


def overrides_of(switch: str, config: Config, cache: str | None) -> tuple[str, tuple[str, ...]]:
    """A switch's label and the options that turn it on.

    Raises UserError for `cache` without one, and for a switch that does not exist.
    """
    if switch == "plain":
        options = ("trainer.attention=plain", "trainer.channels_last=false", "trainer.compile=none")
        return "plain", (*options, "trainer.activation_checkpointing=none")
    if switch == "cache":
        if cache is None:
            raise UserError("needs a cache of this config; make one with vlad cache and name it with --cache")
        return "cached latents", (f"data.cache={cache}",)
    known = {
        "attention": ("SDPA or xformers", ("trainer.attention=auto",)),
        "channels_last": ("channels_last", ("trainer.channels_last=true",)),
        "compile": ("compiled blocks", ("trainer.compile=blocks",)),
        "batch": (f"batch {2 * config.data.batch_size}", (f"data.batch_size={2 * config.data.batch_size}",)),
    }
    if switch not in known:
        raise UserError(f"there is no switch {switch!r}; choose among {', '.join(SWITCHES)}.")
    return known[switch]


def compare(
    call: StageCall,
    switches: Sequence[str],
    steps: int,
    warmup: int,
    cache: str | None,
    show: Callable[[ComparisonRow], None],
) -> list[ComparisonRow]:
    """Measures the stage with each switch added; a switch that fails is left out, with the reason in its row.

    Every row is measured in a new process, so that its memory is its own. Raises UserError for a wrong call.
    """
    config = call.config()
    check_stage(config, call.stage)
    for switch in switches:
        if switch != "cache":
            overrides_of(switch, config, cache)
    check_config(config)
    check_machine(config)
    check_data(config)
    with _new_processes() as run:
        rate = run(_rate, call)
        rows = []
        for switch in switches:
            label = switch
            try:
                label, options = overrides_of(switch, config, cache)
                tried = StageCall(call.path, (*call.overrides, *options), call.stage)
                flops = run(_flops, tried)
                figures = run(_figures, tried, steps, warmup)
                row = ComparisonRow(label, figures, flops, flops * figures.images_per_second / rate)
                call = tried
            except UserError as error:
                row = ComparisonRow(label, reason=str(error))
            rows.append(row)
            show(row)
    return rows


@contextmanager
def _new_processes() -> Iterator[Callable[..., Any]]:
    """Gives a function that runs others in a new process each; their UserErrors are raised here."""
    # Not multiprocessing's pool: its daemonic processes cannot start a loader's workers.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def _rate(call: StageCall) -> float:
    config = call.config()
    return matrix_rate(run_device(config), computed_in(stage_precision(config, call.stage)[0]))


def _flops(call: StageCall) -> float:
    return count_flops(call.config(), call.stage)


def _figures(call: StageCall, steps: int, warmup: int) -> StageFigures:
    try:
        return measure_stage(call.config(), call.stage, steps, warmup)
    except torch.OutOfMemoryError as error:
        raise UserError("out of memory") from error


HEAD = f"{'switch added':20}{'images/s':>10}{'times':>8}{'GFLOP/image':>13}{'MFU':>7}{'data':>7}{'peak memory':>13}"


def text_row(row: ComparisonRow, first: ComparisonRow | None) -> str:
    """A line of the table under HEAD; `first`: the row that the column `times` compares with."""
    if row.figures is None:
        return f"{row.label:20}left out: {row.reason}"
    times = row.figures.images_per_second / (first or row).figures.images_per_second  # type: ignore[union-attr]
    return (
        f"{row.label:20}{row.figures.images_per_second:10.1f}{times:8.2f}{row.flops_per_image / 1e9:13.2f}"
        f"{row.mfu:7.1%}{row.figures.data_wait:7.1%}{row.figures.peak_bytes / 1e6:10.0f} MB"
    )
