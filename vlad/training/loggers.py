"""Where the figures of a stage go: CSV always, TensorBoard, and Weights & Biases where it is asked for."""

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
    """Raises UserError where Weights & Biases cannot do what it is asked to, before anything is trained."""
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
    """A logger in front of which this stands ends no run: what it cannot write, on a full disk, is told once."""

    has_told = False

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self.has_told:
                self.has_told = True
                place = getattr(self, "log_dir", "logs")
                message = f"warning: the curves in {place} are not complete ({error}); training goes on."
                tqdm.write(message, file=sys.stderr)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        with self._told():
            super().log_metrics(metrics, step)  # type: ignore[misc]

    def save(self) -> None:
        with self._told():
            super().save()  # type: ignore[misc]

    def finalize(self, status: str) -> None:
        with self._told():
            super().finalize(status)  # type: ignore[misc]


class LastingCSV(_Lasting, CSVLogger):
    """Lightning's, which a full disk does not end."""


class LastingTensorBoard(_Lasting, TensorBoardLogger):
    """Lightning's, which a full disk does not end."""


def build_loggers(directory: Path, run: str, start: str, wandb: WandbMode) -> list[Logger]:
    """The loggers of a stage (`directory`) of a run; `start` names the folder of this start's CSV file.

    Each start has a folder of its own: the CSV logger would delete the curves of the start before.
    """
    loggers: list[Logger] = [
        LastingCSV(directory, name="logs", version=start, flush_logs_every_n_steps=50),
        LastingTensorBoard(directory, name="logs", version=""),
    ]
    if wandb != "off":
        name = f"{run}-{directory.name}"
        # The same id at every start: the curves go on. Nothing is asked of a network in the offline mode.
        folder = directory / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        loggers.append(
            WandbLogger(project="vlad", name=name, id=name, save_dir=folder, offline=wandb == "offline", resume="allow")
        )
    return loggers
