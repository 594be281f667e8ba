"""What a person sees of a run, and how it is stopped: progress, sample grids, Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from tqdm import tqdm

from vlad.training.callbacks.ema import ExponentialAverage
from vlad.training.callbacks.metrics_logging import total_wait
from vlad.training.checkpoint import publish_file
from vlad.training.memory_savers import uncompiled
from vlad.utils.distributed import derived_seed, is_sharded

IN_A_FILE_SECONDS = 30.0  # between two states of the progress line where nobody watches it


class Progress(L.Callback):
    """One line a stage: which of how many, steps, losses, images a second, the share of waiting for data, time left."""

    def __init__(self, label: str, images_per_step: int, steps: int) -> None:
        self.label, self.images_per_step, self.steps = label, images_per_step, steps
        self.bar: tqdm[Any] | None = None
        self.smoothed: dict[str, float] = {}
        self.started, self.first_step = time.monotonic(), 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            # In a file every new state of the line stays: a month of one a second would be hundreds of megabytes.
            every = 1.0 if sys.stderr.isatty() else IN_A_FILE_SECONDS
            self.bar = tqdm(
                total=self.steps, initial=trainer.global_step, desc=self.label, unit="step",
                mininterval=every, maxinterval=max(10.0, every),
            )  # fmt: skip
        self.started, self.first_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.bar is None:
            return
        for name, value in trainer.progress_bar_metrics.items():
            # A step that is left out for a loss that is no number says nothing of the others.
            if isinstance(value, float) and math.isfinite(value):
                self.smoothed[name] = 0.98 * self.smoothed.get(name, value) + 0.02 * value
        self.bar.set_postfix(
            {
                **{name: f"{value:.4g}" for name, value in self.smoothed.items()},
                "img/s": f"{self.rate(trainer):.0f}",
                "data": f"{self.data_wait(trainer):.0%}",
            },
            refresh=False,
        )
        self.bar.update(trainer.global_step - self.bar.n)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()

    def rate(self, trainer: L.Trainer) -> float:
        """Images a second of all ranks since this process started the stage."""
        elapsed = max(1e-9, time.monotonic() - self.started)
        return (trainer.global_step - self.first_step) * self.images_per_step / elapsed

    def data_wait(self, trainer: L.Trainer) -> float:
        """The share of the time since then that this rank has waited for its loader."""
        return total_wait(trainer) / max(1e-9, time.monotonic() - self.started)

    def summary(self, trainer: L.Trainer) -> dict[str, float]:
        """Smoothed losses, images a second and seconds, for the run's metrics file."""
        return {
            **self.smoothed,
            "images_per_second": self.rate(trainer),
            "data_wait": self.data_wait(trainer),
            "seconds": time.monotonic() - self.started,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"smoothed": self.smoothed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A run that was killed after its last step, before it could say how that went, says it when it is resumed.
        self.smoothed = state_dict["smoothed"]
        self.first_step = self.steps


class SeedEachBatch(L.Callback):
    """Noise, timesteps and droppings as a function of (seed, stage, batch, rank) alone.

    A resumed run then draws what an uninterrupted one would have drawn, with no generator's state to keep, and
    no two ranks draw the same.
    """

    def __init__(self, seed: int, stage: str) -> None:
        self.seed, self.stage = seed, stage

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        # The loop's own count of batches goes on over a resume.
        number = trainer.fit_loop.epoch_loop.total_batch_idx
        torch.manual_seed(derived_seed(self.seed, self.stage, number, trainer.global_rank))


def step_is_whole(trainer: L.Trainer) -> bool:
    """Whether the batch at hand was the last of its optimiser step: gradients in between are in no checkpoint."""
    return (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % trainer.accumulate_grad_batches == 0


class StopOnSignal(L.Callback):
    """Ctrl-C, SIGTERM and SIGUSR1 end the stage after the step at hand, on all ranks; the run then saves and ends.

    One for a whole run. Inside `with`, a scheduler's signals (SIGTERM, SIGUSR1) are held until the first step is done;
    Ctrl-C ends a run that has not begun to train at once.
    """

    def __init__(self) -> None:
        self.stopped = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        self._listen(signal.SIGTERM, signal.SIGUSR1)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning has put its own handlers in place by now: they requeue SLURM jobs and send to other ranks from
        # inside a signal handler. It restores what it found when the stage ends.
        self._listen(signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if signal.SIGINT in self.previous:
            signal.signal(signal.SIGINT, self.previous.pop(signal.SIGINT))

    def _listen(self, *numbers: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in numbers:
            handler = signal.signal(number, self._stop)
            self.previous.setdefault(number, handler)

    def _stop(self, number: int, _: Any) -> None:
        self.stopped = True
        if number == signal.SIGINT:  # a second Ctrl-C is not to be swallowed
            signal.signal(number, self.previous[number])

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        # One rank's signal stops all of them after the same step: a rank that went on alone would wait for ever.
        self.stopped = trainer.strategy.reduce_boolean_decision(self.stopped, all=False)
        trainer.should_stop = trainer.should_stop or (self.stopped and step_is_whole(trainer))


@contextmanager
def shown_if_possible(what: str) -> Iterator[None]:
    """For what only shows a run: where it cannot be written, that is told, and training goes on."""
    try:
        yield
    except OSError as error:
        tqdm.write(f"warning: {what} cannot be written ({error}); training goes on.", file=sys.stderr)


class Measured(L.Callback):
    """Every `every_steps` steps: figures from the averaged weights, into the logs; each time with an image.

    `measure(path)` is given by the run: it draws one image there and returns what it has measured.
    """

    def __init__(
        self,
        directory: Path,
        every_steps: int,
        average: ExponentialAverage,
        measure: Callable[[Path], dict[str, float]],
    ) -> None:
        self.directory, self.every_steps, self.average, self.measure = directory, every_steps, average, measure
        self.measured_step = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if not self.every_steps or step % self.every_steps or step == self.measured_step:
            return
        self.measured_step = step
        if not takes_part(trainer, pl_module):
            return
        path = self.directory / f"step-{step:08d}.png"
        found: dict[str, float] = {}
        with shown_if_possible(str(path)), looked_at(trainer, pl_module, self.average):
            found = self.measure(path)
        for logger in trainer.loggers:
            logger.log_metrics(found, step)


@contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Eval mode for the while; afterwards each submodule's own mode again."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode


def takes_part(trainer: L.Trainer, module: nn.Module) -> bool:
    """Whether this rank has to run what rank 0 looks at: every rank does where each holds a part of the weights."""
    return trainer.is_global_zero or any(is_sharded(parameter) for parameter in module.parameters())


@contextmanager
def looked_at(trainer: L.Trainer, module: nn.Module, average: ExponentialAverage) -> Iterator[None]:
    """The module as it would be published now: averaged, in eval mode, run as it is written."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluated(module))
        stack.enter_context(average.swapped_in(module))
        stack.enter_context(uncompiled())
        if any(parameter.dtype == torch.bfloat16 for parameter in module.parameters()):  # bf16-true
            stack.enter_context(trainer.precision_plugin.forward_context())
        yield


class SampleGrid(L.Callback):
    """Every `every_steps` steps: images from the averaged weights, on the same prompts and seeds.

    `draw(path)` is given by the run; it samples with whatever the parts hold, writes one image, and returns figures
    of it for the logs.
    """

    def __init__(
        self, directory: Path, every_steps: int, average: ExponentialAverage, draw: Callable[[Path], dict[str, float]]
    ) -> None:
        self.directory, self.every_steps, self.average, self.draw = directory, every_steps, average, draw
        self.drawn_step = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if not self.every_steps or step % self.every_steps or step == self.drawn_step:
            return
        self.drawn_step = step
        if not takes_part(trainer, pl_module):
            return
        path = self.directory / f"step-{step:08d}.png"
        found: dict[str, float] = {}
        with shown_if_possible(str(path)), looked_at(trainer, pl_module, self.average):
            found = self.draw(path)
        for logger in trainer.loggers:
            logger.log_metrics(found, step)


class RefreshReport(L.Callback):
    """Has the run's page drawn anew at every sample grid and at the end of the stage; `write` is given by the run."""

    def __init__(self, every_steps: int, write: Callable[[], object]) -> None:
        self.every_steps, self.write = every_steps, write
        self.written_step = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if self.every_steps and step % self.every_steps == 0 and step != self.written_step:
            self._refresh(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step != self.written_step:
            self._refresh(trainer)

    def _refresh(self, trainer: L.Trainer) -> None:
        self.written_step = trainer.global_step
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()  # the page reads the CSV file
            with shown_if_possible("the run's report.html"):
                self.write()


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Writes a small JSON file, whole or not at all, whatever ends the process or the machine."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    publish_file(temporary, path)
