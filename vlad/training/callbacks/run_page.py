"""Refreshes the run's page, report.html, while a stage trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from vlad.reports.run_report import write_run_report
from vlad.training.callbacks.periodic_evaluation import warn_if_unwritable


class RefreshRunPage(L.Callback):
    """Writes the page of `directory` every `every_steps` steps (0: never) and at the end of the stage."""

    def __init__(self, directory: Path, every_steps: int) -> None:
        self.directory, self.every_steps = directory, every_steps
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
            with warn_if_unwritable("the run's report.html"):
                write_run_report(self.directory)
