"""A figure that is no protocol's own: CLIPScore, a distance. Apart from what computes it, which needs torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """One figure of the report, with its interval where it has one."""

    name: str
    protocol: str
    value: float
    low: float | None = None
    high: float | None = None
