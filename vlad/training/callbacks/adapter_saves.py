"""Adapters while they are trained: written in peft's format at every checkpoint, each time proven to come back."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from torch import nn

from vlad.lora.adapter_files import save_adapter, save_for_diffusers
from vlad.lora.card import CARD, adapter_card
from vlad.lora.inject import has_adapter, untrained_targets
from vlad.training.callbacks.ema import ExponentialAverage


def write_adapters(
    modules: Mapping[str, nn.Module | None], directory: Path, about: Mapping[str, Any] | None = None
) -> None:
    """Writes the adapters of the modules that have some, each to its own folder in `directory`, proven one by one.

    `about` (plain values: trigger word, recipe) goes into their files and onto the card README.md beside them.
    The directory appears when all of them are. Raises RuntimeError for one that does not come back as it was.
    """
    folder = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    for name, module in modules.items():
        if has_adapter(module):
            save_adapter(module, folder / name, dict(about or {}))
            if name.endswith("_unet"):
                save_for_diffusers(module, folder / name)
    if folder.is_dir():
        (folder / CARD).write_text(adapter_card(folder, about or {}), encoding="utf-8")
        shutil.rmtree(directory, ignore_errors=True)
        folder.rename(directory)


class AdapterSaves(L.Callback):
    """Every `every_steps` steps the averaged adapters, to one directory; a failed proof stops the run.

    Adapters that nothing has trained yet (of a later phase or stage) are left out.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module | None],
        directory: Path,
        every_steps: int,
        average: ExponentialAverage,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.modules, self.directory, self.every_steps, self.average = modules, directory, every_steps, average
        self.about = dict(about or {})
        self.saved_step = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        step = trainer.global_step
        if step % self.every_steps or step == self.saved_step or not trainer.is_global_zero:
            return
        self.saved_step = step
        with self.average.swapped_in(pl_module):
            trained = {name: m for name, m in self.modules.items() if has_adapter(m) and not untrained_targets(m)}
            write_adapters(trained, self.directory, {**self.about, "step": step})
