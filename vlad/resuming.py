"""Whether and from where a run goes on: its directory's config, and the checkpoint that each stage starts from.

resume: auto   what the run directory holds, from the newest checkpoint that reads back whole
resume: PATH   a new run directory begins at a checkpoint of another run; afterwards it goes on like `auto`, so that a
               requeued job does not go back
resume: none   a new run only: a directory that holds one is refused
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlad.config import Config, load_config
from vlad.errors import UserError
from vlad.training.checkpoint import is_checkpoint, newest_checkpoint, read_checkpoint
from vlad.training.stages import TRAINED

# What neither the weights nor the order of the samples depend on.
DATA_FREE = ("data.shards", "data.workers", "data.verify", "data.fetch.", "data.held_out")
FREE = ("runs", "name", "resume", "trainer.", "sample.", *DATA_FREE)
# Though they begin like a free one.
SHAPING = ("trainer.precision", "trainer.devices", "trainer.nodes", "trainer.strategy")
SHOWN = 8  # differing options that a message names


def config_record(config: Config, stage: str) -> dict[str, Any]:
    """What a checkpoint says of its run, in plain values."""
    return {"stage": stage, "config": json.dumps(asdict(config))}


def check_run_directory(config: Config) -> None:
    """Raises UserError where the run directory holds a run of another config, or `resume` does not fit it."""
    if config.resume not in ("auto", "none"):
        checkpoint_of_another_run(config)
    stored = config.directory / "config.yaml"
    if not stored.is_file():
        return
    if config.resume == "none":
        raise UserError(
            f"{config.directory} holds a run already, and resume is none; give name=... for a new run, or resume=auto"
            " to go on with this one."
        )
    differing = differing_options(_flat_config(load_config(stored)), _flat_config(config))
    if differing:
        raise UserError(
            f"{config.directory} holds a run of another config: {_listed(differing)}; give this run another name"
            " (name=...), or remove the directory."
        )


def differing_options(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The options that shape a result and differ, each as "name was x and is now y", by their dotted names."""
    names = sorted(name for name in before.keys() | now.keys() if name in SHAPING or not name.startswith(FREE))
    return [
        f"{name} was {before.get(name, 'absent')!r} and is now {now.get(name, 'absent')!r}"
        for name in names
        if before.get(name, "absent") != now.get(name, "absent")
    ]


def _flat_config(config: Config) -> dict[str, Any]:
    return _flat(json.loads(json.dumps(asdict(config))))


def _flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _listed(differing: list[str]) -> str:
    rest = f" (and {len(differing) - SHOWN} more)" if len(differing) > SHOWN else ""
    return "; ".join(differing[:SHOWN]) + rest


def checkpoint_of_another_run(config: Config) -> tuple[Path, str] | None:
    """The checkpoint that `resume: PATH` names, and its stage; None for `auto` and `none`.

    Raises UserError when there is none, or it is of this very run.
    """
    if config.resume in ("auto", "none"):
        return None
    path = Path(config.resume)
    if not (path.is_file() or is_checkpoint(path)):
        known = sorted(path.rglob("step-*.ckpt")) if path.is_dir() else []
        hint = f"such as {known[-1]}" if known else "auto or none"
        raise UserError(f"resume: there is no checkpoint at {path}; name a file, {hint}.")
    if config.directory.resolve() in path.resolve().parents:
        raise UserError(
            f"resume: {path} is a checkpoint of this very run, and going back would lose what came after it; give"
            " name=... for a new run from it, or resume=auto to go on from the newest one."
        )
    stage = read_checkpoint(path).get("run", {}).get("stage")
    if stage is None:
        raise UserError(f"resume: {path} does not say which stage it is of; it was written by an older version.")
    return path, stage


def finished_stage(config: Config, name: str, order: list[str]) -> Path | None:
    """The folder with what a finished stage has trained: this run's, or that of the run it began from; else None.

    Raises UserError when that run has lost it.
    """
    own = config.directory / name
    if (own / "metrics.json").is_file():
        return own
    begun = checkpoint_of_another_run(config)
    if begun is None or begun[1] not in order or order.index(name) >= order.index(begun[1]):
        return None
    folder = begun[0].resolve().parents[2] / name
    if not (folder / TRAINED).is_file():
        raise UserError(f"resume: {begun[0]} comes after the stage {name}, but {folder / TRAINED} is not there.")
    return folder


def starting_checkpoint(config: Config, name: str, label: str, speaks: bool) -> Path | None:
    """The checkpoint that a stage starts from, None for its beginning; says which, and what was left out and why."""
    newest, left_out = newest_checkpoint(config.directory / name / "checkpoints")
    begun = checkpoint_of_another_run(config)
    if newest is None and begun is not None and begun[1] == name:
        newest = begun[0]
    if not speaks:
        return newest
    for broken in left_out:
        print(f"{label} {broken.path} does not read back whole ({broken.reason}) and is left out", file=sys.stderr)
    if newest is not None:
        print(f"{label} goes on from {newest}", file=sys.stderr)
        record = read_checkpoint(newest).get("run", {}).get("config")
        differing = differing_options(_flat(json.loads(record)), _flat_config(config)) if record else []
        if differing:
            print(f"{label} its config differs: {_listed(differing)}", file=sys.stderr)
    return newest
