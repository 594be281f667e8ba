"""95 % intervals: the percentile bootstrap over prompts (Efron and Tibshirani 1993), and Wilson's of a share.

Images of one prompt are alike, so prompts are resampled (with replacement), each with all its images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlad.eval.protocols.protocol import ratios

RESAMPLES = 2000
CHUNK = 100  # resamples held at once
Interval = tuple[float, float]


def bootstrap_intervals(
    prompts: Sequence[Mapping[str, tuple[float, float]]],
    combine: Callable[[dict[str, float]], dict[str, float]],
) -> dict[str, Interval]:
    """The 95 % interval of every metric, from each prompt's sums (at least one prompt).

    A resample in which a metric is not defined (no target text) does not count for it.
    """
    names = sorted({name for sums in prompts for name in sums})
    if not names:  # no prompt has a target text
        return {}
    table = np.array([[sums.get(name, (0.0, 0.0)) for name in names] for sums in prompts])  # P M 2
    rng = np.random.default_rng(0)
    count = len(prompts)
    values: dict[str, list[float]] = {}
    for start in range(0, RESAMPLES, CHUNK):
        size = min(CHUNK, RESAMPLES - start)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=size)  # R P
        for sums in np.einsum("rp,pmk->rmk", weights, table):
            for name, value in combine(ratios(dict(zip(names, map(tuple, sums), strict=True)))).items():
                values.setdefault(name, []).append(value)
    return {name: _middle(of_metric) for name, of_metric in values.items()}


def _middle(values: list[float]) -> Interval:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (1927), which stays inside 0..1 for small counts."""
    z = 1.959964
    centre = (right + z * z / 2) / (count + z * z)
    half = z / (count + z * z) * (right * (count - right) / count + z * z / 4) ** 0.5
    # At 0 and 1 one end is the share itself, without rounding errors.
    low, high = centre - half, centre + half
    return (0.0 if right == 0 else low), (1.0 if right == count else high)


@dataclass(frozen=True)
class Share:
    """A share (0..1) with its count and the ends of its 95 % interval; of nothing it is 0."""

    right: int
    count: int
    share: float
    low: float
    high: float


def share_of(right: int, count: int) -> Share:
    """The share of `right` in `count`, with Wilson's interval."""
    low, high = wilson_interval(right, count) if count else (0.0, 1.0)
    return Share(right, count, right / count if count else 0.0, low, high)
