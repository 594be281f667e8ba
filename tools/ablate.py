"""What each part is worth, by training without it: python tools/ablate.py configs/tiny.yaml

Run it again: what is done is not done twice, and what was interrupted goes on. With more --seeds, those are added.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vlad.eval.options import MODES_BY_NAME, MOST_WORDS
from vlad.utils.command_line import run_command_line
from vlad.utils.errors import UserError
from vlad.utils.subprocesses import ChildCommands

ROOT = Path(__file__).resolve().parent.parent
INTERRUPTED = 130


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Trains the full method and four without a part of it, several seeds each, and prints the table."
    )
    parser.add_argument("config", type=Path, help="a config of the whole method, such as configs/tiny.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="options that replace the file's, in all runs"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant (default: 3)")
    parser.add_argument("--count", type=int, default=200, help="held-out words that are drawn (default: 200)")
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=MODES_BY_NAME,
        help="of drawing them, refit among them; each takes time (default: all)",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at once, each with its share of the cores and GPUs (default: 1)"
    )
    parser.add_argument("--out", type=Path, help="the table and the images; default: RUNS/NAME-ablation")
    arguments = parser.parse_intermixed_args()
    if min(arguments.seeds, arguments.count, arguments.jobs) < 1:
        raise UserError("--seeds, --count and --jobs must be at least 1.")
    if arguments.count > MOST_WORDS:
        raise UserError(f"--count must be at most {MOST_WORDS}: all are drawn before the first is read.")
    if arguments.ways is not None and "refit" not in arguments.ways:
        raise UserError("--ways needs refit among them: by it the table compares.")

    from vlad.eval.ablation.ablation_runs import AblationRuns

    runs = AblationRuns(
        arguments.config,
        arguments.overrides,
        arguments.seeds,
        arguments.count,
        arguments.ways,
        arguments.jobs,
        arguments.out,
    )
    with ChildCommands(ROOT) as children:
        complete = runs.run(children)
    if runs.failed:
        first = runs.failed[0]
        print(f"error: the ablation stopped at: {first.command} ({first.where}).", file=sys.stderr)
        return first.code
    if not complete:
        print("\nThe ablation was interrupted; the same command goes on with it.")
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    run_command_line(main)
