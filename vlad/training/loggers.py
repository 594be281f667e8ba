"""Loggers of a stage: CSV, TensorBoard and, with `trainer.wandb`, Weights & Biases."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from tqdm import tqdm

from vlad.utils.errors import UserError, install_command

WandbMode = Literal["off", "offline", "online"]


def check_wandb(mode: WandbMode) -> None:
    """Raises UserError where Weights & Biases is not installed, or has no account for `online`."""
    if mode == "off":
        return
    if importlib.util.find_spec("wandb") is None:
        raise UserError(f"trainer.wandb: wandb is not installed; {install_command('wandb')}, or set it to off.")
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    if mode == "online" and "WANDB_API_KEY" not in os.environ and not netrc.is_file():
        raise UserError(
            "trainer.wandb: online needs an account; run `wandb login`, or set it to offline (`wandb sync` sends the"
            " run later)."
        )


class _Lasting:
    """Put before a logger class: on a full disk it warns once, and the run goes on."""

    has_warned = False

    @contextlib.contextmanager
    def _warn_once(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self.has_warned:
                self.has_warned = True
                place = getattr(self, "log_dir", "logs")
                message = f"warning: the curves in {place} are not complete ({error}); training goes on."
                tqdm.write(message, file=sys.stderr)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        with self._warn_once():
            super().log_metrics(metrics, step)  # type: ignore[misc]

    def save(self) -> None:
        with self._warn_once():
            super().save()  # type: ignore[misc]

    def finalize(self, status: str) -> None:
        with self._warn_once():
            super().finalize(status)  # type: ignore[misc]


class LastingCSV(_Lasting, CSVLogger):
    """Lightning's, which survives a full disk."""


class LastingTensorBoard(_Lasting, TensorBoardLogger):
    """Lightning's, which survives a full disk."""


def build_loggers(directory: Path, run: str, start: str, wandb: WandbMode) -> list[Logger]:
    """The loggers of a run's stage (`directory`); `start` names the folder of this start's CSV file.

    Each start has its own folder: the CSV logger would delete the curves of the start before.
    """
    loggers: list[Logger] = [
        LastingCSV(directory, name="logs", version=start, flush_logs_every_n_steps=50),
        LastingTensorBoard(directory, name="logs", version=""),
    ]
    if wandb != "off":
        name = f"{run}-{directory.name}"
        # The same id at every start continues the curves.
        folder = directory / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        loggers.append(
            WandbLogger(project="vlad", name=name, id=name, save_dir=folder, offline=wandb == "offline", resume="allow")
        )
    return loggers
