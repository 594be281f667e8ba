"""The whole method on the embedded default: shards -> train.py -> sample.py -> scores. `make demo` runs it.

Run it again: what is done is not done twice, and what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from vlad.utils.command_line import run_command_line
from vlad.utils.errors import UserError
from vlad.utils.subprocesses import ChildCommands

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("autoencoder", "layout", "refine")
PROMPTS = (
    'a blue sign that says "HOUSE"',
    'a red sign that says "SUMMER" in yellow letters at the top',
    'a white card that says "COFFEE" in purple letters',
    'a black sign that says "NIGHT" in orange letters at the bottom',
    'a green poster that says "GARDEN" in white letters in the middle',
    'a yellow sign that says "HELLO" and "WORLD" in black letters',
    'an orange wall that says "PAINT" in black letters at the top',
    'a purple sign that says "OPEN" in white letters in the middle on the right',
)


def step(children: ChildCommands, title: str, *command: str) -> float:
    """Runs one of the project's own commands, its output shown; returns its seconds. A failure ends the demo."""
    print(f"\n== {title}: python {' '.join(command)}", flush=True)
    started = time.monotonic()
    code = children.run(*command)
    if code == 2:
        raise UserError(f"the demo stopped at: python {' '.join(command)} (see above).")
    if code != 0:
        sys.exit(code)
    return time.monotonic() - started


def print_summary(run: Path, seconds: dict[str, float], samples: Path) -> None:
    """The closing table, from the files that the steps left behind."""
    stages: dict[str, Any] = {
        stage: json.loads((run / stage / "metrics.json").read_text(encoding="utf-8")) for stage in STAGES
    }
    evaluation = json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    print(f"\n{'stage':14}{'seconds':>9}{'images/s':>10}   losses")
    for stage, metrics in stages.items():
        losses = ", ".join(
            f"{name} {metrics[name]:.4g}" for name in ("pixel_error", "align", "diffusion") if metrics.get(name)
        )
        print(f"{stage:14}{metrics['seconds']:9.0f}{metrics['images_per_second']:10.0f}   {losses}")
    columns = ("words", "letters", "ground", "ink", "place")
    print(f"\n{'drawn by':14}{''.join(f'{name:>9}' for name in columns)}   right ({evaluation['engine']})")
    for mode, score in evaluation["modes"].items():
        colours = score["colours"]
        shares = (
            score["word_accuracy"],
            score["letter_accuracy"],
            colours["grounds_right"],
            colours["inks_right"],
            score["places"]["places_right"],
        )
        print(f"{mode:14}{''.join(f'{share:9.1%}' if share is not None else '        -' for share in shares)}")
    peak_gigabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    times = ", ".join(f"{title} {value:.0f} s" for title, value in seconds.items())
    print(f"\n{evaluation['words']} words that training never draws; {evaluation['protocol']}.")
    minutes = sum(seconds.values()) / 60
    print(f"This time: {times}; together {minutes:.1f} min; largest process {peak_gigabytes:.1f} GB.")
    print(f"Images:  {samples}, on one page: {samples / 'grids/grid.png'}")
    print(f"Scored:    {run / 'evaluation'} (grids of all three ways)")
    print(f"Training:  {run / 'samples'}, {run / 'curves.png'}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Shards, training, samples and scores on the embedded default.")
    parser.add_argument("--config", default="configs/tiny.yaml", help="default: configs/tiny.yaml")
    arguments = parser.parse_args()

    from vlad.config.load import load_config
    from vlad.reports.curves import draw_curves

    os.chdir(ROOT)
    config = load_config(arguments.config)
    run = config.directory
    samples = run / "demo"
    prompts = run / "demo-prompts.txt"
    with ChildCommands(ROOT) as children:
        seconds = {
            "shards": step(children, "render the signs", "tools/render_shards.py", arguments.config),
            "training": step(children, "train all stages", "train.py", arguments.config),
        }
        if not (run / "refine" / "metrics.json").is_file():
            print("\nThe training was interrupted; `make demo` goes on with it.")
            return
        prompts.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
        drawn = ("sample.py", str(run), "--prompts", str(prompts), "--out", str(samples), "--seed", "1")
        seconds["samples"] = step(children, "sample", *drawn)
        seconds["scores"] = step(children, "score", "tools/evaluate.py", str(run))
    draw_curves({stage: run / stage for stage in STAGES}, run / "curves.png")
    print_summary(run, seconds, samples)


if __name__ == "__main__":
    run_command_line(main)
