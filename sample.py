"""Samples pictures: python sample.py runs/tiny --prompt 'a blue sign that says "HOUSE"' --out samples"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlad.errors import UserError, run_command_line


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws a picture for each prompt, with the layout in between.")
    parser.add_argument("run", help="a run directory or a pipeline folder")
    parser.add_argument("--prompt", action="append", default=[], help="what to draw; may be given several times")
    parser.add_argument("--prompts", metavar="FILE", help="a text file with a prompt on each line")
    parser.add_argument("--layout", metavar="FILE", help="a layout.json of yours in place of the predicted one")
    parser.add_argument("--out", default="samples", metavar="DIR", help="where the pictures go (default: samples)")
    parser.add_argument("--seed", type=int, default=0, help="the same for every prompt (default: 0)")
    parser.add_argument("--adapter", metavar="DIR", help="a LoRA run, or its adapter folder")
    parser.add_argument("--steps", type=int, help="solver steps of each stage")
    parser.add_argument("--text-scale", type=float, help="guidance by the prompt")
    parser.add_argument("--layout-scale", type=float, help="guidance by the layout")
    parser.add_argument("--no-refit", action="store_true", help="hand the raw glyph map to stage two, as in the paper")
    arguments = parser.parse_args()

    if arguments.steps is not None and arguments.steps < 1:
        raise UserError("--steps must be at least 1.")
    if not 0 <= arguments.seed < 2**62:
        raise UserError("--seed must be between 0 and 2**62.")
    # Late, so that --help and a mistyped option answer at once.
    from vlad.layout.files import read_layout
    from vlad.sampling import load_pipeline, read_prompts, sample_to_directory
    from vlad.text.prompt import parse_prompt

    prompts = [*arguments.prompt, *(read_prompts(arguments.prompts) if arguments.prompts else [])]
    if not prompts:
        raise UserError("There is nothing to draw; give --prompt 'a blue sign that says \"HOUSE\"' or --prompts FILE.")
    for prompt in prompts:
        parse_prompt(prompt)
    layout = read_layout(arguments.layout) if arguments.layout else None
    pipeline = load_pipeline(arguments.run, arguments.adapter)
    out = Path(arguments.out)
    sample_to_directory(
        pipeline,
        prompts,
        [arguments.seed] * len(prompts),
        out,
        layout,
        arguments.steps,
        arguments.text_scale,
        arguments.layout_scale,
        False if arguments.no_refit else None,
    )
    print(f"{len(prompts)} pictures in {out}, layouts in {out / 'layouts'}, all on one page: {out / 'grids/grid.png'}")


if __name__ == "__main__":
    run_command_line(main)
