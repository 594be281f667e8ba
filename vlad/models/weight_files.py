"""Loading a model with all of its weights: `from_pretrained` of diffusers and transformers, checked.

Both libraries initialise missing tensors at random and ignore unknown ones, with a warning at most.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import ModelMixin
from transformers import PreTrainedModel

from vlad.utils.errors import UserError, counted
from vlad.utils.failures import user_errors
from vlad.utils.hub import hide_progress_bars

LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
MAX_NAMED = 4  # differing tensors that a message names


def load_complete(
    model_class: Any,
    path: str | Path,
    label: str,
    remedy: str,
    *,
    heads_allowed: bool = False,
    pass_on: bool = False,
    **arguments: Any,
) -> Any:
    """The model of a folder or hub id, whose weights are exactly its tensors; `arguments` go to `from_pretrained`.

    heads_allowed: weights that the model has no use for are ignored: checkpoints of language models hold their heads.
    pass_on: what the libraries raise for a model that cannot be read is left to the caller.
    Raises UserError, `label` first and `remedy` last, for a model that cannot be read and for weights that do not fit
    its config, with names and shapes.
    """
    if issubclass(model_class, ModelMixin):
        arguments["low_cpu_mem_usage"] = False  # diffusers then reports tensors of other shapes, as transformers does
    with (
        user_errors(label, unreadable=None if pass_on else remedy),
        hide_progress_bars(),
        _muted("diffusers", "transformers"),
    ):
        model, found = model_class.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, **arguments
        )
    unexpected = () if heads_allowed else found.get("unexpected_keys", ())
    differing = describe_mismatches(found.get("mismatched_keys", ()), found.get("missing_keys", ()), unexpected)
    if differing:
        raise UserError(f"{label} has weights that do not fit its config, {differing}; {remedy}.")
    return model


def load_parts(
    folder: Path, index: Mapping[str, Any], own: Mapping[str, Any], label: str, remedy: str, dtype: torch.dtype
) -> dict[str, Any]:
    """The models that a pipeline's index names, each as `load_complete` reads it; other parts are left out.

    Only classes of the libraries, and `own` by their names: what is code of the pipeline's is not imported.
    """
    parts = {}
    for name, entry in index.items():
        module, kind = entry if isinstance(entry, list | tuple) and len(entry) == 2 else (None, None)
        if module in LIBRARIES:
            model_class = getattr(LIBRARIES[module], str(kind), None)
        else:
            model_class = own.get(str(kind)) if str(module).startswith("vlad.") else None
        if not (inspect.isclass(model_class) and issubclass(model_class, (ModelMixin, PreTrainedModel))):
            continue
        parts[name] = load_complete(
            model_class,
            folder / name,
            f"{label}: the {name} in {folder}",
            remedy,
            heads_allowed=issubclass(model_class, PreTrainedModel),
            dtype=dtype,
        )
    return parts


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
    counts = f"{counted(len(differing), 'tensor')} {'differs' if len(differing) == 1 else 'differ'}"
    return f"{counts}: {', '.join(differing[:MAX_NAMED])}{more}"


def _shape(shape: Iterable[int]) -> str:
    return "x".join(str(side) for side in shape)


@contextmanager
def _muted(*libraries: str) -> Iterator[None]:
    """Hides the libraries' warnings of weights that do not fit: a list of every name."""
    loggers: Mapping[logging.Logger, int] = {
        logger: logger.level for logger in (logging.getLogger(name) for name in libraries)
    }
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)
