"""EMA: each profile against its definition, and post-hoc widths."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vlad.training.callbacks.ema import EMA, Power
from vlad.training.posthoc_ema import exponent_of_width, list_snapshots, profile_product, reconstruct, snapshot_weights
from vlad.utils.errors import UserError

STEPS = 240


class Walk(nn.Module):
    """Parameters on a random walk, and one that is frozen."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(500))
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)


def walk(average: EMA, seed: int = 0, first: int = 0, last: int = STEPS, module: Any = None) -> list[Any]:
    """Steps the average along the walk; all parameters it has seen, step by step."""
    module = module or Walk()
    generator = torch.Generator().manual_seed(seed)
    seen = []
    trainer = SimpleNamespace(global_step=first, is_global_zero=True)
    average.on_train_start(trainer, module)  # type: ignore[arg-type]
    for step in range(1, last + 1):
        move = torch.randn(500, generator=generator)
        if step <= first:
            continue
        average.on_train_batch_end(trainer, module)  # type: ignore[arg-type]  # a micro-batch: nothing moves
        with torch.no_grad():
            module.weight += move
        trainer.global_step = step
        average.on_train_batch_end(trainer, module)  # type: ignore[arg-type]
        seen.append(module.weight.detach().double().clone())
    return seen


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("on_cpu", [False, True])
def test_every_profile_is_its_definition(on_cpu: bool) -> None:
    average = EMA(0.9, half_lives=(40,), widths=(0.1,), on_cpu=on_cpu)
    seen = torch.stack(walk(average))  # N P
    assert set(average.averages) == {"main", "half-life-40", "width-0.100"}
    assert set(average.average) == {"weight"}
    # The last 60 steps decide a decay of 0.9 to 1e-3: a plain sum of (1 - d) d^k p_(n-k).
    weights = 0.1 * 0.9 ** torch.arange(STEPS - 1, -1, -1, dtype=torch.float64)
    assert relative(average.average["weight"], weights @ seen) < 1e-3
    # A power function: weights that are differences of (tau / t)^(gamma + 1), exactly.
    shares = (torch.arange(STEPS + 1, dtype=torch.float64) / STEPS) ** (exponent_of_width(0.1) + 1)
    assert relative(average.averages["width-0.100"]["weight"], shares.diff() @ seen) < 1e-5
    half = average.profiles["half-life-40"]
    assert np.prod([half.decay_at(step) for step in range(1000, 1040)]) == pytest.approx(0.5)


def test_the_width_of_a_power_function_is_its_standard_deviation() -> None:
    for width in (0.02, 0.05, 0.1, 0.2, 0.28):
        exponent = exponent_of_width(width)
        tau = (np.arange(100_000) + 0.5) / 100_000
        weights = (exponent + 1) * tau**exponent / len(tau)
        mean = (weights * tau).sum()
        assert np.sqrt((weights * (tau - mean) ** 2).sum()) == pytest.approx(width, rel=1e-3)
    assert Power(0.1).decay_at(1) == 0


def test_the_product_of_profiles_is_its_integral() -> None:
    tau = (np.arange(200_000) + 0.5) / 200_000 * 30
    a = 5 * tau**4 / 20**5 * (tau <= 20)
    b = 8 * tau**7 / 30**8
    assert profile_product(20, 4, 30, 7) == pytest.approx((a * b).sum() * 30 / len(tau), rel=1e-3)
    assert profile_product(30, 7, 20, 4) == profile_product(20, 4, 30, 7)
    assert np.isfinite(profile_product(10**6, exponent_of_width(0.01), 2 * 10**6, 5))


def test_an_average_of_any_width_is_reconstructed(tmp_path: Path) -> None:
    kept = EMA(0.9, widths=(0.05, 0.1), snapshot_every_steps=20, directory=tmp_path)
    walk(kept)
    assert len(list_snapshots(tmp_path)) == 2 * STEPS // 20
    for width in (0.04, 0.07, 0.15):
        direct = EMA(0.9, widths=(width,))
        walk(direct)
        wanted = direct.averages[f"width-{width:.3f}"]["weight"].double()
        error = relative(reconstruct(tmp_path, width)["weight"], wanted)
        nearest = min(relative(kept.averages[name]["weight"], wanted) for name in ("width-0.050", "width-0.100"))
        assert error < 0.002
        assert error < nearest / 20
    # At an earlier step, only what was known then is used; a kept one comes back as it is.
    early = EMA(0.9, widths=(0.1,))
    walk(early, last=120)
    assert (
        relative(reconstruct(tmp_path, 0.1, step=120)["weight"], early.averages["width-0.100"]["weight"].double())
        < 1e-4
    )
    assert snapshot_weights([(60, 0.05), (120, 0.05), (120, 0.1)], 120, 0.1) == pytest.approx([0, 0, 1], abs=1e-6)


def test_averages_resume_exactly_from_a_checkpoint() -> None:
    straight = EMA(0.9, half_lives=(30,), widths=(0.05,))
    walk(straight, last=100)
    first, module = EMA(0.9, half_lives=(30,), widths=(0.05,)), Walk()
    walk(first, last=50, module=module)
    second = EMA(0.9, half_lives=(30,), widths=(0.05,))
    second.load_state_dict(first.state_dict())
    walk(second, first=50, last=100, module=module)
    for name, average in straight.averages.items():
        assert torch.equal(average["weight"], second.averages[name]["weight"])


def test_what_cannot_be_reconstructed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There are no snapshots in"):
        reconstruct(tmp_path, 0.1)
    with pytest.raises(UserError, match=r"above 0 and at most 0\.28"):
        reconstruct(tmp_path, 0.5)
    kept = EMA(0.9, widths=(0.05,), snapshot_every_steps=5, directory=tmp_path)
    walk(kept, last=10)
    with pytest.raises(UserError, match="no snapshots"):
        reconstruct(tmp_path, 0.1, step=3)
    list_snapshots(tmp_path)[0].path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        reconstruct(tmp_path, 0.1)
