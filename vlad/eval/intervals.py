"""Intervals of scores, by drawing the prompts again.

Images of one prompt are alike, so the prompt is what is drawn (with replacement), all its images with it. A score's
interval holds the middle 95 % of its values over the draws (the percentile bootstrap; Efron and Tibshirani 1993).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vlad.eval.protocols.protocol import ratios

RESAMPLES = 2000
CHUNK = 100  # draws held at once
Interval = tuple[float, float]


def bootstrap_intervals(
    prompts: Sequence[Mapping[str, tuple[float, float]]],
    combine: Callable[[dict[str, float]], dict[str, float]],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """The 95 % interval of every metric, from each prompt's pair of sums a metric (at least one prompt).

    A draw in which a metric is not defined (nothing was asked) does not count for it.
    """
    names = sorted({name for sums in prompts for name in sums})
    if not names:  # of no prompt is anything asked
        return {}
    table = np.array([[sums.get(name, (0.0, 0.0)) for name in names] for sums in prompts])  # P M 2
    rng = np.random.default_rng(seed)
    count = len(prompts)
    drawn: dict[str, list[float]] = {}
    for start in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - start)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=size)  # R P
        for sums in np.einsum("rp,pmk->rmk", weights, table):
            for name, value in combine(ratios(dict(zip(names, map(tuple, sums), strict=True)))).items():
                drawn.setdefault(name, []).append(value)
    return {name: _middle(values) for name, values in drawn.items()}


def _middle(values: list[float]) -> Interval:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (1927): inside 0..1 also for few strings."""
    z = 1.959964
    centre = (right + z * z / 2) / (count + z * z)
    half = z / (count + z * z) * (right * (count - right) / count + z * z / 4) ** 0.5
    # At 0 and at all of them one end is the share itself, whatever the rounding says.
    low, high = centre - half, centre + half
    return (0.0 if right == 0 else low), (1.0 if right == count else high)
