"""Trains a run: python train.py configs/tiny.yaml [key=value ...]"""

from __future__ import annotations

import argparse
import shlex
import sys

from vlad.utils.command_line import run_command_line


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Trains every stage of a run in order; run it again to go on where it stopped.",
        epilog="example: python train.py configs/tiny.yaml name=mine train.layout.steps=3000 trainer.devices=2",
    )
    parser.add_argument("config", help="a file of configs/, or a run's own config.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options that replace the file's")
    arguments = parser.parse_args()

    # Late, so that --help and a mistyped option answer at once.
    from vlad.config.load import load_config

    config = load_config(arguments.config, arguments.overrides)
    from vlad.training.launcher import started_by
    from vlad.training.run import is_finished, next_command, run
    from vlad.utils.distributed import is_main_process

    if is_finished(config):
        print(f"{config.directory} is finished; give name=... for a new run, or sample from it.")
        return 0
    result = run(config)
    if not is_main_process():
        return 0
    if result.finished:
        print(f"Finished: {result.directory}. Next: {next_command(config)}")
    else:
        launcher = started_by()
        again = f"{launcher} command goes on." if launcher else f"command goes on: python {shlex.join(sys.argv)}"
        print(f"Stopped and saved. The same {again}")
    return 0


if __name__ == "__main__":
    run_command_line(main)
