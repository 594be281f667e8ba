"""Resuming a run: does its directory hold the same config, and from which checkpoint does each stage start.

resume: auto   continues what the run directory holds, from the newest checkpoint that reads back whole
resume: PATH   a new run directory begins at a checkpoint of another run; later starts continue like `auto`, so that a
               requeued job does not go back
resume: none   a new run only: a directory that holds one is refused
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlad.config.load import RENAMED, load_config
from vlad.config.schema import Config
from vlad.training.checkpoint import is_checkpoint, newest_checkpoint, read_checkpoint, set_aside, step_of
from vlad.training.parts import TRAINED
from vlad.utils.errors import UserError
from vlad.utils.json_objects import parse_object
from vlad.utils.secrets import without_secrets

# Options that may change within a run: neither the weights nor the order of the samples depend on them.
DATA_FREE = ("data.shards", "data.workers", "data.verify", "data.fetch.", "data.held_out")
FREE = ("runs", "name", "resume", "trainer.", "sample.", *DATA_FREE)
# Exceptions among them, which shape the result.
SHAPING = ("trainer.precision", "trainer.devices", "trainer.nodes", "trainer.strategy")
# A checkpoint of another run goes on only under the same.
FIXED_AT_A_CHECKPOINT = (
    *("data.batch_size", "data.resolutions", "data.max_aspect", "data.bucket_step_pixels"),
    *("train.{stage}.accumulate_batches", "train.{stage}.optimizer"),
)
# Never compared: the run's place, and what it starts from.
PLACE = ("runs", "name", "resume")
SHOWN, NAMED = 8, 40  # differing options that a message gives with their values, and at all
MOST_CHARACTERS = 40  # of a value
ABSENT = "(not there)"


def config_record(config: Config, stage: str) -> dict[str, Any]:
    """What a checkpoint records of its run, in plain values."""
    return {"stage": stage, "config": json.dumps(without_secrets(asdict(config)))}


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
            " to continue this one."
        )
    differing = differing_options(_flat_config(load_config(stored)), _flat_config(config))
    if differing:
        raise UserError(
            f"{config.directory} holds a run of another config: {listed(differing)}. Keep these as they were to"
            " continue it, or give this run another name (name=...)."
        )


def differing_options(before: dict[str, Any], now: dict[str, Any], free: bool = False) -> list[str]:
    """The options that shape a result and differ, each as "name: before -> now", by their dotted names.

    A section that one of the two leaves out is given by its own name alone. `free`: the options that may change
    instead, without a run's place.
    """
    # None in the one, options of its own in the other.
    sections = [
        name
        for one, other in ((before, now), (now, before))
        for name, value in one.items()
        if value is None and any(key.startswith(f"{name}.") for key in other)
    ]
    found: dict[str, str] = {}
    for name in sorted(before.keys() | now.keys()):
        shapes = name in SHAPING or not name.startswith(FREE)
        if shapes == free or name in PLACE or before.get(name, ABSENT) == now.get(name, ABSENT):
            continue
        section = next((other for other in sections if name == other or name.startswith(f"{other}.")), None)
        if section is not None:
            found[section] = f"{section}: none -> given" if section in before else f"{section}: given -> none"
        else:
            found[name] = f"{name}: {_short(before.get(name, ABSENT))} -> {_short(now.get(name, ABSENT))}"
    return list(found.values())


def freely_changed(config: Config) -> list[str]:
    """The options that may change within a run and are not as its config.yaml has them; empty for a new run."""
    stored = config.directory / "config.yaml"
    if not stored.is_file():
        return []
    return differing_options(_flat_config(load_config(stored)), _flat_config(config), free=True)


def _short(value: Any) -> str:
    """A value as in a config, cut where it is long."""
    text = "null" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 3]}..."


def _flat_config(config: Config) -> dict[str, Any]:
    """Options by dotted names, as files hold them: without secrets."""
    return _flat(json.loads(json.dumps(without_secrets(asdict(config)))))


def _flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def listed(differing: list[str]) -> str:
    """Differing options in one line: the first with their values, some more by name."""
    names = [difference.partition(":")[0] for difference in differing[SHOWN:NAMED]]
    more = f"; and {', '.join(names)}" if names else ""
    rest = f" and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
    return "; ".join(differing[:SHOWN]) + more + rest


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
            " name=... for a new run from it, or resume=auto to continue from the newest one."
        )
    if not is_checkpoint(path):
        raise UserError(f"resume: {path} is not named as a checkpoint is, step-00001000.ckpt; name it so again.")
    record = _run_record(path)
    stage = record.get("stage")
    if not isinstance(stage, str):
        raise UserError(f"resume: {path} does not say which stage it is of; it was written by an older version.")
    _check_place(config, path, stage, _recorded_config(record))
    return path, stage


def _check_place(config: Config, path: Path, stage: str, before: dict[str, Any]) -> None:
    """Raises UserError where the checkpoint's place in the data, or its optimiser's state, fits no stage of the config.

    A place is a number of steps and batches: batches of another size or kind, or another number of them a step, are
    other samples. Whatever else differs is as the config says from the next step on.
    """
    now = _flat_config(config)
    steps = now.get(f"train.{stage}.steps")
    if steps is not None and step_of(path) > steps:
        raise UserError(
            f"resume: {path} has trained {step_of(path)} steps, and train.{stage}.steps is {steps}; raise it, or resume"
            " from an earlier checkpoint."
        )
    fixed = [name.format(stage=stage) for name in FIXED_AT_A_CHECKPOINT]
    differing = [
        f"{name}: {_short(before[name])} -> {_short(now[name])}"
        for name in fixed
        if name in before and name in now and before[name] != now[name]
    ]
    if differing:
        raise UserError(
            f"resume: the checkpoint {path} has its place in the data, and its optimiser, under other options:"
            f" {listed(differing)}. Keep these, or begin anew from that run's weights (base=...)."
        )


def _run_record(path: Path) -> dict[str, Any]:
    """What a checkpoint says of its run; empty in the first checkpoints, and where it is no record."""
    record = read_checkpoint(path).get("run", {})
    return record if isinstance(record, dict) else {}


def _recorded_config(record: dict[str, Any]) -> dict[str, Any]:
    """The options that a checkpoint's run had, by their dotted names of today; empty in the first checkpoints."""
    try:
        flat = _flat(parse_object(record.get("config") or "{}"))
    except (ValueError, TypeError):
        flat = {}
    return {RENAMED.get(name, name): value for name, value in flat.items()}


def finished_stage(config: Config, name: str, order: Sequence[str]) -> Path | None:
    """The folder with what a finished stage has trained: this run's, or that of the run it began from; else None.

    Raises UserError when that run has lost it.
    """
    own = config.directory / name
    if (own / "metrics.json").is_file():
        return own
    begun = checkpoint_of_another_run(config)
    if begun is None or begun[1] not in order or order.index(name) >= order.index(begun[1]):
        return None
    folder = begun[0].resolve().parent.parent.parent / name
    if not (folder / TRAINED).is_file():
        raise UserError(
            f"resume: {begun[0]} comes after the stage {name}, but {folder / TRAINED} is not there; name the checkpoint"
            " inside its run directory."
        )
    return folder


def starting_checkpoint(config: Config, name: str, label: str, speaks: bool) -> Path | None:
    """The checkpoint that a stage starts from, None for its beginning; prints which, and which are skipped and why.

    `speaks`: this process prints, and renames damaged checkpoints. Raises UserError where there are checkpoints and all
    are damaged: a run does not begin again without a word.
    """
    folder = config.directory / name / "checkpoints"
    newest, skipped = newest_checkpoint(folder)
    if newest is None and skipped:
        raise UserError(
            f"{label} none of the checkpoints in {folder} reads back whole ({skipped[0].path.name}:"
            f" {skipped[0].reason}); restore one, or remove them to begin the stage again."
        )
    begun = checkpoint_of_another_run(config)
    if newest is None and begun is not None and begun[1] == name:
        newest = begun[0]
    if not speaks:
        return newest
    for damaged in skipped:
        what = f"{damaged.path} does not read back whole ({damaged.reason}) and is skipped"
        print(f"{label} {what}: renamed to {set_aside(damaged.path).name}", file=sys.stderr)
    if newest is not None:
        print(f"{label} resumes from {newest}", file=sys.stderr)
        before = _recorded_config(_run_record(newest))
        differing = differing_options(before, _flat_config(config)) if before else []
        if differing:
            print(f"{label} its config differs: {listed(differing)}", file=sys.stderr)
    return newest
