"""Images of few steps that an OCR engine reads without a fault, solver by solver."""

from __future__ import annotations

import time

import numpy as np

from vlad.config.schema import Config
from vlad.data.render_shards import held_out_samples
from vlad.diffusion.solvers import SOLVERS
from vlad.metrics.ocr import build_ocr_engine, run_ocr
from vlad.metrics.spelling import word_accuracy
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.utils.errors import UserError

SOLVER_STEPS = (2, 4, 6, 10)


def compare_solvers(config: Config, pipeline: VLADPipeline, count: int, engine: str) -> None:
    """Prints the share of images of held-out words read, by steps (of each stage) and by solver that fits the run."""
    engine_name = build_ocr_engine(engine).name
    samples = held_out_samples(config.data, count)
    prompts = [sample.caption for sample in samples]
    targets = [[line.text for line in sample.layout.lines] for sample in samples]
    print(f"{count} images of held-out words, {engine_name}; share read exactly, and ms an image")
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
