"""Checking that a pipeline's weight files fit their configs, before anything is loaded.

    PART/config.json        the wanted names and shapes: the model is built from it on the meta device
    PART/*.safetensors      the stored names and shapes, read from the files' headers

Loading would stop at the first tensor of another shape, and initialise missing ones at random.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError, safe_open

from vlad.utils.errors import UserError

MAX_NAMED = 4  # differing tensors that a message names
CLASSES: dict[str, Any] = {"UNet2DConditionModel": UNet2DConditionModel, "AutoencoderKL": AutoencoderKL}


def check_weight_shapes(folder: Path, option: str) -> None:
    """Raises UserError when the weights of a UNet or an autoencoder in a pipeline's folder do not fit its config.

    The message names the tensors with their shapes. Parts of other classes are skipped.
    """
    for path in sorted(folder.glob("*/config.json")):
        part = path.parent
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            model_class = CLASSES.get(config.get("_class_name"))
            if model_class is None:
                continue
            with torch.device("meta"):
                model = model_class.from_config(config)
            stored = _stored_shapes(part)
        except (OSError, ValueError, TypeError, AttributeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{option}: {part} is damaged ({reason}); copy it again from where it was made.") from error
        wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        both = stored.keys() & wanted.keys()
        differing = describe_mismatches(
            ((name, stored[name], wanted[name]) for name in both if stored[name] != wanted[name]),
            wanted.keys() - both,
            stored.keys() - both,
        )
        if differing:
            raise UserError(
                f"{option}: the weights in {part} do not fit its config, {differing}; copy it again from where it was"
                " made, or name the right one."
            )


def describe_mismatches(
    mismatched: Iterable[tuple[str, Iterable[int], Iterable[int]]],
    missing: Collection[str],
    unexpected: Collection[str],
) -> str:
    """The number of differing tensors and the first few, with stored and wanted shapes; empty if all fit."""
    differing = [
        f"{name} {_shape(stored)} where the config says {_shape(wanted)}" for name, stored, wanted in sorted(mismatched)
    ]
    differing += [f"{name} missing" for name in sorted(missing)]
    differing += [f"{name} not in the model" for name in sorted(unexpected)]
    if not differing:
        return ""
    more = f" and {len(differing) - MAX_NAMED} more" if len(differing) > MAX_NAMED else ""
    return f"{len(differing)} tensors differ: {', '.join(differing[:MAX_NAMED])}{more}"


def _stored_shapes(part: Path) -> dict[str, tuple[int, ...]]:
    files = sorted(part.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError("it holds no .safetensors file")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(str(file), framework="pt") as opened:
            shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return shapes


def _shape(shape: Iterable[int]) -> str:
    return "x".join(str(side) for side in shape)
