"""Validation passes: early stopping, the best weights, overfitting, resuming."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vlad.config.training import ValidationOptions
from vlad.training.callbacks.validation import Validation, ValidationResult


class Trainer:
    """What Validation needs of Lightning's trainer."""

    is_global_zero, should_stop, max_steps, global_step = True, False, 1000, 0
    loggers: tuple[Any, ...] = ()

    @property
    def strategy(self) -> Trainer:
        return self

    def broadcast(self, value: Any) -> Any:
        return value


class FakeEMA:
    """The EMA of a module with one number, which is its step."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    @property
    def average(self) -> dict[str, torch.Tensor]:
        return {"weight": torch.tensor([float(self.trainer.global_step)])}

    def swapped_in(self, _: Any) -> Any:
        return torch.no_grad()


def follow(
    results: list[ValidationResult], folder: Path, **options: Any
) -> tuple[Validation, Trainer, torch.nn.Module]:
    """A stage with a pass every 10 steps, the first one of the base, until it ends or the results do."""
    trainer, module = Trainer(), torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    validation = Validation(folder, ValidationOptions(share=0.1, every_steps=10, **options), FakeEMA(trainer), None, "")  # type: ignore[arg-type]
    validation.evaluate = lambda _: results[trainer.global_step // 10]
    validation.on_train_start(trainer, module)  # type: ignore[arg-type]
    for step in range(1, 10 * (len(results) - 1) + 1):
        trainer.global_step = step
        validation.on_train_batch_end(trainer, module)  # type: ignore[arg-type]
        if trainer.should_stop:
            break
    validation.restore_best(module)
    return validation, trainer, module


def results_of(
    losses: list[float], letters: list[float] | None = None, training: list[float] | None = None
) -> list[ValidationResult]:
    return [
        ValidationResult(loss, (training or losses)[place], None if letters is None else letters[place])
        for place, loss in enumerate(losses)
    ]


def test_a_stage_without_improvement_ends_with_its_best_weights(tmp_path: Path) -> None:
    losses = [1.0, 0.8, 0.6, 0.7, 0.65, 0.3]
    validation, trainer, module = follow(results_of(losses), tmp_path, patience=2)
    assert (trainer.global_step, validation.best_step) == (40, 20)
    assert float(module.weight) == 20.0
    patient, trainer, module = follow(results_of(losses), tmp_path, patience=3)
    assert (trainer.global_step, patient.best_step, float(module.weight)) == (50, 50, 50.0)


def test_damaged_best_weights_are_reported_and_the_last_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validation, _, module = follow(results_of([1.0, 0.8, 0.6, 0.7]), tmp_path)
    assert (validation.metrics()["best_step"], float(module.weight)) == (20, 20.0)
    capsys.readouterr()
    with torch.no_grad():
        module.weight.fill_(30.0)
    validation.path.write_bytes(validation.path.read_bytes()[:20])
    validation.restore_best(module)
    assert float(module.weight) == 30.0 and validation.metrics()["best_step"] == 30
    printed = capsys.readouterr().err
    assert (
        "the weights of the best validation pass (step 20) cannot be read" in printed
        and str(validation.path) in printed
    )


def test_a_lower_loss_with_fewer_letters_is_not_the_best(tmp_path: Path) -> None:
    validation, _, module = follow(
        results_of([1.0, 0.9, 0.5, 0.4], letters=[0.9, 0.88, 0.7, 0.84]), tmp_path, lost_letters=0.05
    )
    assert (validation.best_step, float(module.weight)) == (10, 10.0)
    lenient, _, module = follow(
        results_of([1.0, 0.9, 0.5, 0.4], letters=[0.9, 0.88, 0.7, 0.84]), tmp_path, lost_letters=0.07
    )
    assert (lenient.best_step, float(module.weight)) == (30, 30.0)


def test_patience_waits_for_letters_that_come_back(tmp_path: Path) -> None:
    letters = [0.9, 0.0, 0.0, 0.0, 0.5, 0.86]
    validation, trainer, _ = follow(results_of([1.0, 0.9, 0.8, 0.7, 0.75, 0.76], letters), tmp_path, patience=2)
    assert (trainer.global_step, validation.best_step) == (50, 50)
    validation, trainer, _ = follow(
        results_of([1.0, 0.9, 0.8, 0.8, 0.8, 0.76], [*letters[:4], 0.0, 0.9]), tmp_path, patience=2
    )
    assert (trainer.global_step, validation.best_step) == (40, None)


def test_without_a_best_pass_the_last_weights_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    validation, _, module = follow(results_of([1.0, 0.9], letters=[0.9, 0.1]), tmp_path)
    assert (validation.best_step, float(module.weight)) == (None, 0.0)
    assert "no validation pass read as many letters" in capsys.readouterr().err


def test_overfitting_is_reported_once_with_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held, trained = [1.0, 0.6, 0.7, 0.8, 0.9], [1.0, 0.6, 0.5, 0.4, 0.3]
    validation, _, _ = follow(results_of(held, training=trained), tmp_path)
    printed = capsys.readouterr().err
    assert printed.count("overfitting: since step 10") == 1
    assert "from 0.6000 to 0.8000 while" in printed
    assert validation.metrics()["overfits"] == 1.0
    follow(results_of(held, training=held), tmp_path)  # both rise: something else is wrong
    follow(results_of([1.0, 0.6, 0.605, 0.61], training=trained), tmp_path)  # by less than two per cent
    assert "overfitting" not in capsys.readouterr().err


def test_a_pass_runs_in_the_precision_of_bf16_frozen_weights(tmp_path: Path) -> None:
    trainer = Trainer()
    trainer.precision_plugin = SimpleNamespace(forward_context=lambda: torch.autocast("cpu", torch.bfloat16))
    module = torch.nn.Linear(2, 1).requires_grad_(False)
    module.weight.data = module.weight.data.bfloat16()  # as under bf16-true
    validation = Validation(tmp_path, ValidationOptions(share=0.1), FakeEMA(trainer), None, "")  # type: ignore[arg-type]
    validation.evaluate = lambda stage: ValidationResult(float(stage(torch.ones(1, 2))), 0.0)
    validation.on_train_start(trainer, module)  # type: ignore[arg-type]
    assert 0 in validation.results


def test_results_survive_a_resume(tmp_path: Path) -> None:
    validation, _, _ = follow(results_of([1.0, 0.8, 0.9, 0.9]), tmp_path, patience=2)
    again = Validation(tmp_path, validation.options, validation.ema, validation.evaluate, "")
    again.load_state_dict(json.loads(json.dumps(validation.state_dict()), object_hook=_with_numbers))
    trainer = Trainer()
    trainer.global_step = 30
    again.on_train_start(trainer, torch.nn.Module())  # type: ignore[arg-type]
    assert trainer.should_stop  # it was killed after its last pass
    assert again.results == validation.results


def _with_numbers(record: dict[str, Any]) -> dict[Any, Any]:
    return {int(name) if name.isdigit() else name: value for name, value in record.items()}
