"""Rows of a run's evaluation: each scores held-out samples that one mode generates, and is scored once.

RUN/evaluation/metrics.json   the figures of all rows, and what they rest on: samples, engine, weights, protocol
RUN/evaluation/ROW/, ROW.png  a row's images, and its grid
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vlad.config.load import load_config
from vlad.config.schema import Config
from vlad.eval.generators.generator import weights_digest
from vlad.eval.options import GENERATION_MODES, GenerationMode, mode_name
from vlad.inference.load_pipeline import load_pipeline
from vlad.metrics.ocr import build_ocr_engine
from vlad.pipeline.folders import pipeline_folder
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.utils.atomic_files import write_json
from vlad.utils.json_objects import read_object
from vlad.utils.paths import existing_file, writable_directory


@dataclass(frozen=True)
class HeldOutSet:
    """What a run is scored on: words or posters, how many, and how they are compared; of others no figure is kept."""

    noun: str
    count: int
    protocol: str


@dataclass(frozen=True)
class ScoreRow:
    """One row of a run's evaluation: the mode that generates its images, None for images that no model generates, and
    the function that scores it, which writes its images to RUN/evaluation/."""

    mode: GenerationMode | None
    score: Callable[[Path], dict[str, Any]]


def evaluate_rows(
    run: Path,
    held_out: HeldOutSet,
    engine: str,
    modes: Sequence[GenerationMode] | None,
    rows_of: Callable[[Config, VLADPipeline], dict[str, ScoreRow]],
) -> dict[str, Any]:
    """The metrics of a finished run with every row that `modes` ask for (None: all), also in its metrics.json.

    Rows that were scored before, on the same set by the same engine with the same weights, keep their figures.
    """
    out = run / "evaluation"
    metrics_file = out / "metrics.json"
    engine_name = build_ocr_engine(engine).name
    weights = weights_digest(pipeline_folder(run))
    stored = stored_metrics(metrics_file, held_out, engine_name, weights)
    scored: dict[str, Any] = stored.get("modes", {})
    # The first versions had no choice of modes, and no such key.
    has_all = stored.get("all_ways", True) or (modes is not None and set(modes) <= set(scored))
    if scored and has_all and "unfinished" not in stored:
        return stored
    pipeline = load_pipeline(run)
    config = load_config(existing_file(run / "config.yaml", "config", "name a run directory that train.py made"))
    writable_directory(out, "the evaluation", needed_bytes=20_000_000)
    possible = rows_of(config, pipeline)
    chosen = [name for name, row in possible.items() if modes is None or row.mode is None or row.mode in modes]
    if all(possible[name].mode is None for name in chosen):
        chosen = list(possible)
    known = {name: score for name, score in scored.items() if name in possible}
    for name in {*GENERATION_MODES, *possible} - {*known, *chosen}:  # images of figures that were discarded
        shutil.rmtree(out / mode_name(name), ignore_errors=True)
        (out / f"{mode_name(name)}.png").unlink(missing_ok=True)
    pending = [name for name in chosen if name not in known]
    metrics = stored
    while pending:
        name = pending.pop(0)
        known[name] = possible[name].score(out)
        metrics = {
            held_out.noun: held_out.count,
            "engine": engine_name,
            "weights": weights,
            "protocol": held_out.protocol,
            "all_ways": known.keys() >= possible.keys(),
            "modes": {name: known[name] for name in possible if name in known},
        }
        # After each row: an evaluation that is stopped goes on with the next one.
        write_json(metrics_file, metrics | ({"unfinished": pending} if pending else {}))
    return metrics


def modes_of(pipeline: VLADPipeline) -> tuple[GenerationMode, ...]:
    """The modes in which a pipeline can generate."""
    if not pipeline.uses_layout:
        return ("no layout",)
    return GENERATION_MODES if pipeline.layout_unet is not None else ("true layout",)


def write_images(out: Path, row: str, images: Sequence[Image.Image], grid: Image.Image) -> None:
    """Writes OUT/ROW/0000.png, ... and the grid OUT/ROW.png."""
    folder = writable_directory(out / mode_name(row), "images")
    for stale in folder.glob("[0-9][0-9][0-9][0-9].png"):  # of another count
        stale.unlink()
    for number, image in enumerate(images):
        image.save(folder / f"{number:04d}.png")
    grid.save(out / f"{mode_name(row)}.png")


def stored_metrics(metrics_file: Path, held_out: HeldOutSet, engine: str, weights: str) -> dict[str, Any]:
    """The stored figures of the same set, this engine and these weights; empty, with a message, for any others."""
    if not metrics_file.is_file():
        return {}
    try:
        stored = read_object(metrics_file)
        # The first versions stored neither positions nor the digest of the weights.
        is_complete = all("places" in score for score in stored["modes"].values())
        noun = "posters" if "posters" in stored else "words"
        found = HeldOutSet(noun, stored[noun], stored["protocol"] if noun == "posters" else held_out.protocol)
        origin = f"{found.count} {noun} by {stored['engine']}"
    except (ValueError, KeyError, TypeError, AttributeError):
        print(f"{metrics_file} is damaged; all modes are scored again.")
        return {}
    same_weights = stored.get("weights", weights) == weights
    if (found, stored["engine"]) == (held_out, engine) and is_complete and same_weights:
        return stored
    other = "" if same_weights else ", of other weights,"
    print(f"The figures of {origin}{other} in {metrics_file} are replaced.")
    return {}
