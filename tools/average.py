"""A finished run with another average of its weights: python tools/average.py RUN STAGE --width 0.1 --out DIR"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlad.utils.command_line import run_command_line
from vlad.utils.errors import UserError
from vlad.utils.hub import without_bars
from vlad.utils.paths import writable_directory


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Publishes the pipeline of a run with another average of what a stage has trained, to sample and"
        " score it: an average of any width from the stage's snapshots, or one of STAGE/averages."
    )
    parser.add_argument("run", help="the run directory")
    parser.add_argument("stage", choices=("layout", "refine"))
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--width", type=float, help="sigma_rel, a share of the training: 0.05, 0.1, ...")
    which.add_argument("--average", help="a name of STAGE/averages, such as half-life-500")
    parser.add_argument("--step", type=int, help="with --width: the step that is averaged up to; the last one")
    parser.add_argument("--out", required=True, help="the folder of the new pipeline")
    arguments = parser.parse_args()
    from vlad.pipeline.folders import pipeline_folder
    from vlad.training.averaged_pipeline import averaged_pipeline, stored_average
    from vlad.training.posthoc_ema import reconstruct

    stage = Path(arguments.run) / arguments.stage
    folder = pipeline_folder(Path(arguments.run))
    if folder.resolve() == Path(arguments.out).resolve():
        raise UserError("--out must not be the run's own pipeline; name another folder.")
    if arguments.average is not None:
        average = stored_average(stage, arguments.average)
    else:
        average = reconstruct(stage, arguments.width, arguments.step)
    pipeline = averaged_pipeline(folder, arguments.stage, average)
    out = writable_directory(arguments.out, "the pipeline", needed_bytes=50_000_000)
    with without_bars():
        pipeline.save_pretrained(out)
    print(f"Published in {out}. Next: python sample.py {out} --prompt '...'")


if __name__ == "__main__":
    run_command_line(main)
