"""Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP: the run ends after the step at hand, on all ranks, and saves."""

from __future__ import annotations

import signal
import threading
from typing import Any

import lightning as L

# Windows has SIGTERM alone. SIGHUP: the terminal was closed.
SCHEDULER_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


def ends_optimizer_step(trainer: L.Trainer) -> bool:
    """Whether the batch at hand is the last of its optimiser step: gradients in between are in no checkpoint."""
    return (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % trainer.accumulate_grad_batches == 0


class StopOnSignal(L.Callback):
    """One for a whole run, used as a context manager around its stages.

    Inside `with`, `SCHEDULER_SIGNALS` are held until the first step is done; Ctrl-C ends a run that has not begun to
    train at once.
    """

    def __init__(self) -> None:
        self.stopped = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        self._listen(*SCHEDULER_SIGNALS)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning has put its own handlers in place by now: they requeue SLURM jobs and send to other ranks from
        # inside a signal handler. It restores what it found when the stage ends.
        self._listen(signal.SIGINT, *SCHEDULER_SIGNALS)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if signal.SIGINT in self.previous:
            signal.signal(signal.SIGINT, self.previous.pop(signal.SIGINT))

    def _listen(self, *numbers: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in numbers:
            if number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            handler = signal.signal(number, self._stop)
            self.previous.setdefault(number, handler)

    def _stop(self, number: int, _: Any) -> None:
        self.stopped = True
        if number == signal.SIGINT:  # a second Ctrl-C ends the process
            signal.signal(number, self.previous[number])

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        # One rank's signal stops all of them after the same step: a rank that went on alone would wait for ever.
        self.stopped = trainer.strategy.reduce_boolean_decision(self.stopped, all=False)
        trainer.should_stop = trainer.should_stop or (self.stopped and ends_optimizer_step(trainer))
