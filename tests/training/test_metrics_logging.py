"""Metrics of a run: losses by noise level, learning rates, the wait for data, and their loggers."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import IterableDataset

from vlad.config.training import OptimOptions
from vlad.reports.curves import read_curves
from vlad.training.callbacks.ema import EMA
from vlad.training.callbacks.metrics_logging import StepMetrics, learning_rates
from vlad.training.callbacks.periodic_evaluation import PeriodicEvaluation
from vlad.training.callbacks.progress import Progress
from vlad.training.callbacks.run_page import RefreshRunPage
from vlad.training.datamodule import TimedLoader
from vlad.training.loggers import build_loggers, check_wandb
from vlad.training.noise_levels import NoiseLevels
from vlad.training.optim import Schedule, build_optimizer, learning_rate_factor
from vlad.utils.errors import UserError


def test_losses_are_averaged_by_noise_level() -> None:
    levels = NoiseLevels(1000)
    levels.add(torch.tensor([1.0, 3.0, 7.0]), torch.tensor([0, 99, 999]))
    levels.add(torch.tensor([5.0]), torch.tensor([100]))
    assert levels.take() == pytest.approx({"noise_0": 2.0, "noise_1": 5.0, "noise_9": 7.0})
    assert levels.take() == {}


def test_learning_rates_are_named_where_they_differ() -> None:
    one, two = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [one], "lr": 0.1}, {"params": [two], "lr": 0.1}])
    assert learning_rates(optimizer) == {"learning_rate": 0.1}
    optimizer = torch.optim.SGD([{"params": [one], "lr": 0.1, "name": "unet"}, {"params": [two], "lr": 0.2}])
    assert learning_rates(optimizer) == {"learning_rate_unet": 0.1, "learning_rate_1": 0.2}


class _Line(L.LightningModule):
    """One weight under the schedule of a stage."""

    def __init__(self, options: OptimOptions) -> None:
        super().__init__()
        self.weight, self.options = torch.nn.Parameter(torch.ones(1)), options

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return (self.weight * batch).sum()

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self, self.options)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": Schedule(optimizer, self.options), "interval": "step"},
        }


def test_the_learning_rate_of_a_step_is_the_one_it_was_made_with(tmp_path: Path) -> None:
    options = OptimOptions(steps=6, learning_rate=0.1, warmup_steps=3, accumulate_batches=2)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=6,
        accumulate_grad_batches=2,
        callbacks=[StepMetrics(1, 2)],
        logger=build_loggers(tmp_path, "line", "from-step-00000000", "off"),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(_Line(options), torch.utils.data.DataLoader(torch.ones(12, 1)))
    found = dict(read_curves(tmp_path)["learning_rate"])
    assert found == pytest.approx({step: 0.1 * learning_rate_factor(step, options) for step in range(6)})


def test_a_skipped_step_does_not_spoil_the_smoothed_losses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress("[1/3 layout]", 4, 3)
    trainer = SimpleNamespace(global_step=0, is_global_zero=True, datamodule=None, progress_bar_metrics={})
    progress.on_train_start(trainer, torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    assert progress.bar is not None
    assert (progress.bar.mininterval, progress.bar.maxinterval) == (30.0, 30.0)  # pytest's stderr is no terminal
    for step, loss in enumerate((2.0, torch.nan, 2.0), start=1):
        trainer.global_step, trainer.progress_bar_metrics = step, {"loss": loss}
        progress.on_train_batch_end(trainer, torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    progress.on_train_end(trainer, torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    assert progress.summary(trainer)["loss"] == pytest.approx(2.0)  # type: ignore[arg-type]
    assert capsys.readouterr().err.count("[1/3 layout]") <= 2
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress.on_train_start(trainer, torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    assert progress.bar.mininterval == 1.0
    progress.bar.close()


class Slow(IterableDataset):
    def __iter__(self):  # type: ignore[no-untyped-def]
        for number in range(3):
            time.sleep(0.05)
            yield number


def test_the_loader_sums_up_waiting_time() -> None:
    loader = TimedLoader(Slow(), batch_size=None)
    for number in loader:
        waited = loader.waited_seconds
        time.sleep(0.2)  # a step, which is no waiting
        assert loader.waited_seconds == waited >= 0.05 * (int(number) + 1)


def test_wandb_is_checked_before_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_wandb("off")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"wandb is not installed; pip install 'vlad-diffusion\[wandb\]'"):
        check_wandb("offline")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    check_wandb("offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UserError, match="online needs an account"):
        check_wandb("online")
    monkeypatch.setenv("WANDB_API_KEY", "x")
    check_wandb("online")
    assert [type(logger).__name__ for logger in build_loggers(tmp_path / "layout", "run", "from-step-0", "off")] == [
        "LastingCSV",
        "LastingTensorBoard",
    ]


class Full(PeriodicEvaluation):
    """Finds no room for its image."""

    def evaluate(self, path: Path) -> dict[str, float]:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_curves_and_images_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    curves, _ = build_loggers(tmp_path / "layout", "run", "from-step-00000000", "off")
    curves.log_metrics({"loss": 1.0}, step=0)
    curves.save()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("csv.DictWriter.writerows", full)
        for step in (1, 2):
            curves.log_metrics({"loss": 2.0}, step=step)
            curves.save()
    curves.log_metrics({"loss": 3.0}, step=3)
    curves.finalize("success")
    said = capsys.readouterr().err
    assert said.count("No space left on device); training goes on.") == 1
    assert read_curves(tmp_path / "layout")["loss"] == [(0, 1.0), (1, 2.0), (2, 2.0), (3, 3.0)]  # room again

    trainer = SimpleNamespace(global_step=2, is_global_zero=True, loggers=[])
    monkeypatch.setattr("vlad.training.callbacks.run_page.write_run_report", full)
    for callback in (Full(tmp_path, 2, EMA(0.9)), RefreshRunPage(tmp_path, 2)):
        callback.on_train_batch_end(trainer, torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert said.count("training goes on") == 2
    assert "step-00000002.png cannot be written" in said


def test_wandb_offline_keeps_its_curves_on_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # whoever asks is refused
    for start in ("from-step-00000000", "from-step-00000002"):
        logger = build_loggers(tmp_path / "layout", "signs", start, "offline")[-1]
        logger.log_metrics({"loss": 1.0}, step=1)
        logger.finalize("success")
        wandb.finish()
    kept = list((tmp_path / "layout" / "logs" / "wandb").glob("offline-run-*/*.wandb"))
    assert {path.name for path in kept} == {"run-signs-layout.wandb"}  # one run over both starts
    assert all(path.stat().st_size > 0 for path in kept)
