"""Words read in images of few steps, solver by solver."""

from __future__ import annotations

import time

import numpy as np

from vlad.config.schema import Config
from vlad.data.signs import held_out_signs
from vlad.diffusion.solvers import SOLVERS
from vlad.metrics.ocr import build_ocr_engine, run_ocr
from vlad.metrics.spelling import word_accuracy
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.utils.errors import UserError

SOLVER_STEPS = (2, 4, 6, 10)


def compare_solvers(config: Config, pipeline: VLADPipeline, count: int, engine: str) -> None:
    """Prints the share of held-out words read, by steps (of each stage) and by solver that fits the run's objective."""
    engine_name = build_ocr_engine(engine).name
    signs = held_out_signs(config.data.synthetic, count)
    prompts, targets = [sign.caption for sign in signs], [[line.text for line in sign.layout.lines] for sign in signs]
    print(f"{count} held-out words, {engine_name}; share read exactly, and ms an image")
    print(f"{'':10}" + " ".join(f"{f'{steps} steps':>14}" for steps in SOLVER_STEPS))
    for solver in SOLVERS:
        try:
            pipeline.use_solver(solver)
        except UserError:  # for another objective
            continue
        cells = []
        for steps in SOLVER_STEPS:
            started = time.perf_counter()
            images = [np.asarray(image) for image in pipeline(prompts, list(range(count)), steps=steps).images]
            seconds = time.perf_counter() - started
            accuracy = word_accuracy(list(run_ocr(engine, images)), targets)
            cells.append(f"{accuracy:7.1%} {1000 * seconds / count:4.0f}ms")
        print(f"{solver:10}" + " ".join(f"{cell:>14}" for cell in cells), flush=True)
