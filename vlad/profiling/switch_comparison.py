"""What each switch brings, one after the other, as a table: every row keeps the switches of the rows above it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from vlad.config.load import load_config
from vlad.config.schema import Config
from vlad.profiling.training_throughput import StageFigures, count_flops, matrix_rate, measure_stage
from vlad.training.devices import run_device
from vlad.training.precision import computed_in, stage_precision
from vlad.utils.errors import UserError

SWITCHES = ("plain", "attention", "channels_last", "compile", "cache", "batch")


@dataclass(frozen=True)
class Row:
    """A line of the table: figures, or why there are none."""

    label: str
    figures: StageFigures | None = None
    flops_per_image: float = 0.0
    mfu: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Call:
    """A config as the command line names it: what a process of its own needs to load it."""

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
            raise UserError("needs a cache of this config; make one with tools/cache.py and name it with --cache")
        return "cached latents", (f"data.cache={cache}",)
    known = {
        "attention": ("SDPA or xformers", ("trainer.attention=auto",)),
        "channels_last": ("channels_last", ("trainer.channels_last=true",)),
        "compile": ("compiled blocks", ("trainer.compile=blocks",)),
        "batch": (f"batch {2 * config.data.batch_size}", (f"data.batch_size={2 * config.data.batch_size}",)),
    }
    if switch not in known:
        raise UserError(f"there is no switch {switch!r}; choose of {', '.join(SWITCHES)}.")
    return known[switch]


def compare(
    call: Call, switches: Sequence[str], steps: int, warmup: int, cache: str | None, show: Callable[[Row], None]
) -> list[Row]:
    """Measures the stage with each switch added; a row that cannot be had says why and changes nothing below it.

    Every row is a process of its own, so that its memory is its own. Raises UserError for a wrong call.
    """
    config = call.config()
    for switch in switches:
        if switch != "cache":
            overrides_of(switch, config, cache)
    with _elsewhere() as run:
        rate = run(_rate, call)
        rows = []
        for switch in switches:
            label = switch
            try:
                label, options = overrides_of(switch, config, cache)
                tried = Call(call.path, (*call.overrides, *options), call.stage)
                flops = run(_flops, tried)
                figures = run(_figures, tried, steps, warmup)
                row = Row(label, figures, flops, flops * figures.images_per_second / rate)
                call = tried
            except UserError as error:
                row = Row(label, reason=str(error))
            rows.append(row)
            show(row)
    return rows


@contextmanager
def _elsewhere() -> Iterator[Callable[..., Any]]:
    """Runs a function of this module in a new process; its UserErrors come back as such."""
    # Not a pool of multiprocessing's: its daemons may start no loader's workers.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def _rate(call: Call) -> float:
    config = call.config()
    return matrix_rate(run_device(config), computed_in(stage_precision(config, call.stage)[0]))


def _flops(call: Call) -> float:
    return count_flops(call.config(), call.stage)


def _figures(call: Call, steps: int, warmup: int) -> StageFigures:
    try:
        return measure_stage(call.config(), call.stage, steps, warmup)
    except torch.OutOfMemoryError as error:
        raise UserError("the device's memory does not hold it") from error


HEAD = f"{'switch added':20}{'images/s':>10}{'times':>8}{'GFLOP/image':>13}{'MFU':>7}{'data':>7}{'peak memory':>13}"


def text_row(row: Row, first: Row | None) -> str:
    """A line of the table under HEAD; `first` is what `times` compares with."""
    if row.figures is None:
        return f"{row.label:20}left out: {row.reason}"
    times = row.figures.images_per_second / (first or row).figures.images_per_second  # type: ignore[union-attr]
    return (
        f"{row.label:20}{row.figures.images_per_second:10.1f}{times:8.2f}{row.flops_per_image / 1e9:13.2f}"
        f"{row.mfu:7.1%}{row.figures.data_wait:7.1%}{row.figures.peak_bytes / 1e6:10.0f} MB"
    )
