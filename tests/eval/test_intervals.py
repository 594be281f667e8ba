"""Bootstrap intervals over prompts."""

import numpy as np
import pytest

from vlad.eval.intervals import bootstrap_intervals
from vlad.eval.protocols import PROTOCOLS
from vlad.eval.protocols.protocol import no_derived_metrics


def test_bootstrap_interval_of_a_share_is_binomial() -> None:
    right = [1.0] * 70 + [0.0] * 30
    low, high = bootstrap_intervals([{"accuracy": (value, 1.0)} for value in right], no_derived_metrics)["accuracy"]
    # The normal approximation of 0.7 of 100: 0.7 +- 1.96 * sqrt(0.21 / 100).
    assert low == pytest.approx(0.61, abs=0.02)
    assert high == pytest.approx(0.79, abs=0.02)


def test_images_of_one_prompt_are_resampled_together() -> None:
    rng = np.random.default_rng(0)
    prompts = [{"accuracy": (4.0 * value, 4.0)} for value in (rng.random(50) < 0.5).astype(float)]
    alone = [{"accuracy": (sums["accuracy"][0] / 4, 1.0)} for sums in prompts for _ in range(4)]
    wide, narrow = (bootstrap_intervals(case, no_derived_metrics)["accuracy"] for case in (prompts, alone))
    assert wide[1] - wide[0] == pytest.approx(2 * (narrow[1] - narrow[0]), rel=0.15)


def test_intervals_of_derived_metrics_and_undefined_resamples() -> None:
    prompts = [
        {"accuracy": (1.0, 2.0), "precision": (1.0, 1.0)},
        {"accuracy": (0.0, 2.0), "precision": (0.0, 0.0)},
    ]
    found = bootstrap_intervals(prompts, PROTOCOLS["textatlas"].combine)
    assert set(found) == {"accuracy", "precision", "f_measure"}
    assert found["accuracy"] == (0, 0.5)
    assert found == bootstrap_intervals(prompts, PROTOCOLS["textatlas"].combine)
    assert found["f_measure"][0] <= 2 / 5 <= found["f_measure"][1]
    # Prompts without target text are left out of corrected MARIO-Eval, and have no interval.
    assert bootstrap_intervals([{}, {}], PROTOCOLS["mario"].combine) == {}
