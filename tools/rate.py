"""A study with people: python tools/rate.py vlad=FOLDER sd=FOLDER --prompts FILE, then open the address.

The same command with --results prints what they said.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

from vlad.utils.command_line import run_command_line
from vlad.utils.errors import UserError, did_you_mean


def check_numbers(arguments: argparse.Namespace) -> None:
    """Raises UserError for the first number that cannot be."""
    if arguments.first is not None and arguments.first < 1:
        raise UserError(f"--first is {arguments.first}, and must be at least 1; leave it out for all prompts.")
    if arguments.port is not None and not 0 < arguments.port < 65536:
        raise UserError(
            f"--port is {arguments.port}, and must be from 1 to 65535; leave it out for the first free one."
        )
    if arguments.seed < 0:
        raise UserError(f"--seed is {arguments.seed}, and must be at least 0.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Serves a page on which people rate anonymised images; --results prints the table."
    )
    parser.add_argument("systems", nargs="+", metavar="NAME=FOLDER", help="images of each system, as evaluate.py's")
    parser.add_argument(
        "--prompts", type=Path, nargs="+", required=True, metavar="FILE", help="what they were drawn of"
    )
    parser.add_argument(
        "--watermarked",
        nargs="+",
        default=[],
        metavar="NAME",
        help="systems whose images carry DeepFloyd's watermark, which would tell who drew them: it is painted over",
    )
    parser.add_argument("--pairs", action="store_true", help="choose between two, rather than 1 to 5 for each")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N prompts")
    parser.add_argument("--seed", type=int, default=0, help="of the orders (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("ratings.sqlite"), metavar="FILE", help="where answers are kept"
    )
    parser.add_argument("--results", action="store_true", help="print the results; serve nothing")
    parser.add_argument("--host", default="127.0.0.1", help="which address listens (default: this machine alone)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    arguments = parser.parse_args()
    check_numbers(arguments)
    systems: dict[str, Path] = {}
    for said in arguments.systems:
        name, _, folder = said.partition("=")
        if not name or not folder or name in systems:
            raise UserError(f"{said!r} names no system, or one twice; write NAME=FOLDER for each.")
        systems[name] = Path(folder)
    for name in arguments.watermarked:
        if name not in systems:
            raise UserError(f"--watermarked {name} is no system here.{did_you_mean(name, systems)}")

    from vlad.eval.benchmark.prompt_files import read_prompt_files
    from vlad.eval.human_study.rating_page import build_rating_page, check_host, serve_rating_page
    from vlad.eval.human_study.ratings import open_ratings
    from vlad.eval.human_study.results import results_of, table_of

    if not arguments.results:
        check_host(arguments.host)
    prompts = read_prompt_files(arguments.prompts)[: arguments.first]
    kind: Literal["pairs", "scores"] = "pairs" if arguments.pairs else "scores"
    ratings = open_ratings(
        kind, systems, prompts, arguments.out, arguments.seed, arguments.watermarked, must_exist=arguments.results
    )
    study = ratings.study
    left_out = len(prompts) - len(study.prompts)
    about = f"{len(study.prompts)} prompts, {len(systems)} systems; answers"
    without = f"{left_out} prompts are left out: not every system has an image of them.\n" if left_out else ""
    if arguments.results:
        print(table_of(results_of(ratings.answers(), sorted(systems), study.kind, arguments.seed)))
        print(f"{about} are in {arguments.out}\n{without}", end="")
        return
    page = build_rating_page(ratings)
    print(f"{about} go to {arguments.out}\n{without}", end="", flush=True)
    serve_rating_page(page, arguments.host, arguments.port)


if __name__ == "__main__":
    run_command_line(main)
