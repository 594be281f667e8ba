"""The optimiser: what a config says holds from the next step on, whatever a restored state held."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from vlad.config.training import OptimOptions
from vlad.training.optim import NAMES, Schedule, build_optimizer, learning_rate_factor
from vlad.utils.errors import UserError

BEFORE = OptimOptions(steps=10, learning_rate=1e-2, weight_decay=0.1, warmup_steps=2, constant_share=0.2)
RATES = {"first.weight": 5e-2, "first.bias": 5e-2}


def new_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"first": nn.Linear(3, 4), "second": nn.Linear(4, 2)})


def update(module: nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> None:
    torch.manual_seed(step)
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    schedule.step()


def trained(steps: int, rates: dict[str, float] | None = None) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """A module after some steps, and the states of its optimiser and schedule."""
    module = new_module()
    optimizer = build_optimizer(module, BEFORE, learning_rates=rates)
    schedule = Schedule(optimizer, BEFORE)
    for step in range(steps):
        update(module, optimizer, schedule, step)
    return module, copy.deepcopy(optimizer.state_dict()), copy.deepcopy(schedule.state_dict())


def resumed_update(
    module: nn.Module, state: dict[str, Any], schedule_state: dict[str, Any], options: OptimOptions, rates: Any = None
) -> dict[str, torch.Tensor]:
    """The parameters after one more step, with the states restored under these options."""
    module = copy.deepcopy(module)
    optimizer = build_optimizer(module, options, learning_rates=rates)
    schedule = Schedule(optimizer, options)
    optimizer.load_state_dict(copy.deepcopy(state))  # whose tensors the optimiser goes on with
    schedule.load_state_dict(schedule_state)
    update(module, optimizer, schedule, 3)
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def expected_update(
    module: nn.Module, state: dict[str, Any], options: OptimOptions, rates: dict[str, float] | None = None
) -> dict[str, torch.Tensor]:
    """AdamW's fourth step as its paper has it, from the moments of three (arXiv 1711.05101, algorithm 2)."""
    numbers = {
        name: n for group in state["param_groups"] for name, n in zip(group[NAMES], group["params"], strict=True)
    }
    torch.manual_seed(3)
    found = {}
    for name, parameter in module.named_parameters():
        gradient = torch.randn_like(parameter)
        moments = state["state"][numbers[name]]
        rate = (rates or {}).get(name, options.learning_rate) * learning_rate_factor(3, options)
        first = options.beta1 * moments["exp_avg"] + (1 - options.beta1) * gradient
        second = options.beta2 * moments["exp_avg_sq"] + (1 - options.beta2) * gradient.square()
        decayed = parameter * (1 - rate * (options.weight_decay if parameter.ndim > 1 else 0.0))
        corrected = (second / (1 - options.beta2**4)).sqrt() + 1e-8
        found[name] = (decayed - rate * first / (1 - options.beta1**4) / corrected).detach()
    return found


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"learning_rate": 1e-4},
        {"weight_decay": 0.5},
        {"weight_decay": 0.0},
        {"beta1": 0.5},
        {"beta2": 0.5},
        {"warmup_steps": 8},
        {"constant_share": 0.9},
        {"steps": 4},
        {"steps": 40},
        {"fused": False},
    ],
    ids=str,
)
def test_the_next_step_is_that_of_the_options_now(change: dict[str, Any]) -> None:
    module, state, schedule = trained(3)
    options = replace(BEFORE, **change)
    found = resumed_update(module, state, schedule, options)
    torch.testing.assert_close(found, expected_update(module, state, options))


@pytest.mark.parametrize(
    ("before", "now"),
    [(None, RATES), (RATES, None), (RATES, dict.fromkeys(RATES, 1e-05))],
    ids=["new", "gone", "other"],
)
def test_components_keep_their_moments_under_other_learning_rates(
    before: dict[str, float] | None, now: dict[str, float] | None
) -> None:
    module, state, schedule = trained(3, before)
    found = resumed_update(module, state, schedule, BEFORE, now)
    torch.testing.assert_close(found, expected_update(module, state, BEFORE, now))


def test_states_of_version_0_1_are_found_by_their_order() -> None:
    module, state, schedule = trained(3)
    nameless = copy.deepcopy(state)
    for group in nameless["param_groups"]:
        del group[NAMES]
    options = replace(BEFORE, learning_rate=1e-4)
    found = resumed_update(module, nameless, schedule, options)
    torch.testing.assert_close(found, expected_update(module, state, options))
    with pytest.raises(UserError, match="other groups of parameters"):
        resumed_update(module, nameless, schedule, BEFORE, RATES)
