"""Post-hoc EMA: an average of any width after training, from snapshots of power-function averages.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models" (EDM2), arXiv 2312.02696,
section 3 and appendix C. A power-function average at step t weighs the parameters of step tau by the profile

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1)    for 0 <= tau <= t

with the standard deviation sigma_rel t ("width" sigma_rel). A profile that was not kept is approximated, in the least
squares sense, by a weighted sum of those that were; the same sum of the snapshots is its average.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from vlad.config.training import MAX_WIDTH
from vlad.utils.errors import UserError
from vlad.utils.failures import user_errors

SNAPSHOTS = "snapshots"
_NAME = re.compile(r"step-(\d{8,})-width-(\d\.\d{3})\.safetensors")


@dataclass(frozen=True)
class Snapshot:
    """A stored average: at which step, of which width."""

    path: Path
    step: int
    width: float


def snapshot_path(stage: Path, step: int, width: float) -> Path:
    """Where the snapshot of a stage stands."""
    return stage / SNAPSHOTS / f"step-{step:08d}-width-{width:.3f}.safetensors"


def list_snapshots(stage: Path) -> list[Snapshot]:
    """The snapshots of a stage in the order of steps."""
    found = []
    for path in (stage / SNAPSHOTS).glob("*.safetensors"):
        name = _NAME.fullmatch(path.name)
        if name is not None:
            found.append(Snapshot(path, int(name.group(1)), float(name.group(2))))
    return sorted(found, key=lambda snapshot: (snapshot.step, snapshot.width))


def exponent_of_width(width: float) -> float:
    """gamma of sigma_rel, by Eq. 126: sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))."""
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def profile_product(step_a: float, exponent_a: float, step_b: float, exponent_b: float) -> float:
    """The integral over tau of the product of two profiles."""
    a, b = exponent_a + 1, exponent_b + 1
    # (a / t_a^a) (b / t_b^b) min(t_a, t_b)^(a + b - 1) / (a + b - 1), powers of large steps kept apart as ratios.
    shorter = min(step_a, step_b)
    return a * b / (a + b - 1) * (shorter / step_a) ** a * (shorter / step_b) ** b / shorter


def snapshot_weights(kept: Sequence[tuple[int, float]], step: int, width: float) -> np.ndarray:
    """The weights of snapshots (step, width) whose sum is nearest to the profile of `width` at `step`."""
    profiles = [(of_step, exponent_of_width(of_width)) for of_step, of_width in kept]
    products = np.array([[profile_product(*a, *b) for b in profiles] for a in profiles])
    target = np.array([profile_product(*a, step, exponent_of_width(width)) for a in profiles])
    return np.linalg.lstsq(products, target, rcond=None)[0]


def reconstruct(stage: Path, width: float, step: int | None = None) -> dict[str, Tensor]:
    """The average of `width` at `step` (None: the last snapshot's) from the snapshots up to there.

    Raises UserError when there are no snapshots, one is damaged, or the width is none.
    """
    if not 0 < width <= MAX_WIDTH:
        raise UserError(f"The width of an average is a share of the training, above 0 and at most {MAX_WIDTH}.")
    snapshots = list_snapshots(stage)
    last = snapshots[-1].step if snapshots and step is None else step
    snapshots = [snapshot for snapshot in snapshots if last is not None and snapshot.step <= last]
    if not snapshots or last is None:
        raise UserError(
            f"There are no snapshots in {stage / SNAPSHOTS} up to that step; train with ema_power_widths=[0.05,0.1] and"
            " ema_snapshot_every_steps of the stage."
        )
    weights = snapshot_weights([(snapshot.step, snapshot.width) for snapshot in snapshots], last, width)
    total: dict[str, Tensor] = {}
    kinds: dict[str, torch.dtype] = {}
    for snapshot, weight in zip(snapshots, weights, strict=True):
        with user_errors(f"The snapshot {snapshot.path}", unreadable="remove it"):
            stored = load_file(snapshot.path)
        for name, value in stored.items():  # weights of both signs cancel: summed in double precision
            kinds[name] = value.dtype
            total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + float(weight) * value.double()
    return {name: value.to(kinds[name]) for name, value in total.items()}
