"""Several LoRA adapters in a pipeline, each with a weight: merged into its models and removed again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vlad.lora.merge import merge_adapters, restore_weights
from vlad.utils.errors import UserError

ADAPTED = ("lvlm", "composition", "autoencoder", "layout_unet", "refine_unet")
_UNADAPTED = "_unadapted_weights"  # the attribute of a pipeline that keeps the weights its adapters have changed


def set_adapters(pipeline: Any, adapters: Sequence[str]) -> None:
    """Merges adapters, `DIR` or `DIR:WEIGHT` each, in place of those that are merged now; an empty list unloads all.

    Raises UserError for a folder without an adapter, and for an adapter of another base; nothing is merged then.
    """
    chosen = [_parse_adapter(given) for given in adapters]
    for part, weights in getattr(pipeline, _UNADAPTED, {}).items():
        restore_weights(getattr(pipeline, part), weights)
    unadapted: dict[str, dict[str, Tensor]] = {}
    try:
        for part in ADAPTED:
            for_part = [(folder / part, weight) for folder, weight in chosen if (folder / part).is_dir()]
            if for_part and getattr(pipeline, part) is None:
                raise UserError(f"The adapter in {for_part[0][0].parent} is for a {part}, and this pipeline has none.")
            if for_part:
                unadapted[part] = merge_adapters(getattr(pipeline, part), for_part)
    except UserError:
        for part, weights in unadapted.items():
            restore_weights(getattr(pipeline, part), weights)
        unadapted = {}
        raise
    finally:
        setattr(pipeline, _UNADAPTED, unadapted)


def _parse_adapter(given: str) -> tuple[Path, float]:
    """The folder and the weight of an adapter given as "DIR", "DIR:WEIGHT" or "DIR=WEIGHT"."""
    name, weight = given, 1.0
    for mark in (":", "="):
        before, found, number = given.rpartition(mark)
        if found and before and not Path(given).exists():
            try:
                name, weight = before, float(number)
                break
            except ValueError:
                continue
    before, mark, number = given.rpartition(":")
    if name == given and mark and before and not Path(given).exists() and Path(before).is_dir():
        raise UserError(
            f"--adapter {given}: {number!r} is no weight; write a number behind the colon, like {before}:0.8."
        )
    if not math.isfinite(weight):
        raise UserError(f"--adapter {given}: the weight must be a finite number, not {weight}.")
    path = Path(name)
    folder = path / "adapter" if (path / "adapter").is_dir() else path
    if not any((folder / part).is_dir() for part in ADAPTED):
        raise UserError(f"There is no adapter in {path}; give the directory of a finished LoRA run.")
    return folder, weight
