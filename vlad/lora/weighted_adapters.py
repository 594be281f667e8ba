"""LoRA adapters in a pipeline: several, each with a weight, merged into its models and taken out again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vlad.lora.adapters import merge_adapters, restore_weights
from vlad.utils.errors import UserError

ADAPTED = ("lvlm", "composition", "autoencoder", "layout_unet", "refine_unet")
_UNADAPTED = "_unadapted_weights"  # where a pipeline keeps what its adapters have changed


def set_adapters(pipeline: Any, adapters: Sequence[str]) -> None:
    """Merges adapters, `DIR` or `DIR:WEIGHT` each, in place of those that are merged now; none unloads all.

    Raises UserError for a folder without an adapter, and for one of another base; nothing is merged then.
    """
    chosen = [_adapter_of(said) for said in adapters]
    for part, weights in getattr(pipeline, _UNADAPTED, {}).items():
        restore_weights(getattr(pipeline, part), weights)
    unadapted: dict[str, dict[str, Tensor]] = {}
    try:
        for part in ADAPTED:
            own = [(folder / part, weight) for folder, weight in chosen if (folder / part).is_dir()]
            if own and getattr(pipeline, part) is None:
                raise UserError(f"The adapter in {own[0][0].parent} is for a {part}, and this pipeline has none.")
            if own:
                unadapted[part] = merge_adapters(getattr(pipeline, part), own)
    except UserError:
        for part, weights in unadapted.items():
            restore_weights(getattr(pipeline, part), weights)
        unadapted = {}
        raise
    finally:
        setattr(pipeline, _UNADAPTED, unadapted)


def _adapter_of(said: str) -> tuple[Path, float]:
    """The adapter's folder and its weight: of "DIR", "DIR:WEIGHT" or "DIR=WEIGHT"."""
    name, weight = said, 1.0
    for mark in (":", "="):
        before, found, number = said.rpartition(mark)
        if found and before and not Path(said).exists():
            try:
                name, weight = before, float(number)
                break
            except ValueError:
                continue
    before, mark, number = said.rpartition(":")
    if name == said and mark and before and not Path(said).exists() and Path(before).is_dir():
        raise UserError(
            f"--adapter {said}: {number!r} is no weight; write a number behind the colon, like {before}:0.8."
        )
    if not math.isfinite(weight):
        raise UserError(f"--adapter {said}: the weight must be a finite number, not {weight}.")
    path = Path(name)
    folder = path / "adapter" if (path / "adapter").is_dir() else path
    if not any((folder / part).is_dir() for part in ADAPTED):
        raise UserError(f"There is no adapter in {path}; give the directory of a finished LoRA run.")
    return folder, weight
