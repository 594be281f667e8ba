"""Verbs that compare: ablate, compare-adapter, describe, rate."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Literal

from vlad.cli.common_options import add_address, add_config, add_prompts, add_seed, named_places
from vlad.cli.verb import Verb
from vlad.eval.options import MODES_BY_NAME, MOST_WORDS
from vlad.utils.command_line import OptionParser, whole
from vlad.utils.errors import UserError, did_you_mean

INTERRUPTED = 130


def _add_ablate_options(parser: OptionParser) -> None:
    add_config(parser)
    parser.add_argument("--seeds", type=whole(1), default=3, metavar="N", help="runs of each variant (default: 3)")
    parser.add_argument(
        "--count", type=whole(1, MOST_WORDS), default=200, metavar="N", help="held-out words of a run (default: 200)"
    )
    parser.add_argument(
        *("--modes", "--ways"),
        nargs="+",
        choices=MODES_BY_NAME,
        help="generation modes to score, refit among them; each takes time (default: all)",
    )
    parser.add_argument(
        "--jobs",
        type=whole(1),
        default=1,
        metavar="N",
        help="runs at once, each with its share of the cores and GPUs (default: 1)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="the table and the images; default: RUNS/NAME-ablation")


def _ablate(arguments: argparse.Namespace) -> int:
    if arguments.modes is not None and "refit" not in arguments.modes:
        raise UserError("--modes needs refit among them: the table compares by it.")

    from vlad.eval.ablation.ablation_runs import AblationRuns
    from vlad.utils.subprocesses import ChildCommands

    runs = AblationRuns(
        arguments.config,
        arguments.overrides,
        arguments.seeds,
        arguments.count,
        arguments.modes,
        arguments.jobs,
        arguments.out,
    )
    with ChildCommands() as children:
        complete = runs.run(children)
    if runs.failed:
        first = runs.failed[0]
        print(f"error: the ablation stopped at: {first.command} ({first.where}).", file=sys.stderr)
        return first.code
    if not complete:
        print("\nThe ablation was interrupted; the same command resumes it.")
        return INTERRUPTED
    return 0


ABLATE = Verb(
    "ablate",
    "Trains the full method and four ablations, several seeds each, and prints the table.",
    _add_ablate_options,
    _ablate,
    "vlad ablate configs/tiny.yaml --seeds 3",
    "Run it again to resume: finished runs are not repeated, and more --seeds are added.",
)


def _add_adapter_options(parser: OptionParser) -> None:
    parser.add_argument("base", type=Path, help="the run or pipeline folder that the adapter was trained on")
    parser.add_argument(
        "--adapter", action="append", required=True, metavar="DIR[:WEIGHT]", help="a LoRA run; several add up"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("samples/before-after"), metavar="DIR", help="default: samples/before-after"
    )
    parser.add_argument(
        *("--images-per-prompt", "--images-each", "--pictures-each"),
        type=whole(1),
        default=2,
        metavar="N",
        help="of each caption, default 2",
    )
    parser.add_argument(
        "--signs", type=whole(), default=100, metavar="N", help="plain signs, to measure what is forgotten; 0 for none"
    )


def _compare_adapter(arguments: argparse.Namespace) -> None:
    from vlad.eval.adapter_comparison import compare_adapters, comparison_table

    found, page = compare_adapters(
        arguments.base, arguments.adapter, arguments.out, arguments.images_per_prompt, arguments.signs
    )
    print(comparison_table(found))
    print(f"Side by side: {page}; figures: {arguments.out / 'metrics.json'}")


COMPARE_ADAPTER = Verb(
    "compare-adapter",
    "Compares images of a base without and with an adapter, on the same seeds.",
    _add_adapter_options,
    _compare_adapter,
    "vlad compare-adapter runs/tiny --adapter runs/lora",
    "The prompts are the captions of the images that the LoRA run has held out. Measured: how near both come to those"
    " images, and how they spell.",
)


def _add_systems(parser: OptionParser) -> None:
    parser.add_argument(
        "systems", nargs="+", metavar="NAME=FOLDER", help="images of each system, named as vlad evaluate names them"
    )
    add_prompts(parser, required=True)


def _add_describe_options(parser: OptionParser) -> None:
    _add_systems(parser)
    parser.add_argument(
        "--describer", nargs="+", required=True, metavar="NAME=MODEL", help="image-text-to-text models of transformers"
    )
    parser.add_argument("--sentences", type=Path, metavar="DIR", help="a sentence encoder, for the similarity")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("evaluations/descriptions"),
        metavar="DIR",
        help="default: evaluations/descriptions",
    )


def _describe(arguments: argparse.Namespace) -> int:
    systems, describers = named_places(arguments.systems), named_places(arguments.describer)

    from vlad.eval.description_round_trip import evaluate_descriptions

    folders = {name: Path(folder) for name, folder in systems.items()}
    found = evaluate_descriptions(
        folders, arguments.prompts, describers, arguments.out, arguments.sentences, arguments.count
    )
    print(found.summary())
    return 1 if found.is_partial else 0


DESCRIBE = Verb(
    "describe",
    "Has vision-language models describe images, and compares the descriptions with the prompts.",
    _add_describe_options,
    _describe,
    "vlad describe vlad=FOLDER sd=FOLDER --prompts FILE --describer MODEL",
)


def _add_rate_options(parser: OptionParser) -> None:
    _add_systems(parser)
    parser.add_argument(
        "--watermarked",
        nargs="+",
        default=[],
        metavar="NAME",
        help="systems whose images carry DeepFloyd's watermark, which would give them away: it is painted over",
    )
    parser.add_argument("--pairs", action="store_true", help="choose between two, rather than 1 to 5 for each")
    add_seed(parser, "of the orders")
    parser.add_argument(
        "--out", type=Path, default=Path("ratings.sqlite"), metavar="FILE", help="where answers are kept"
    )
    parser.add_argument("--results", action="store_true", help="print the results; serve nothing")
    add_address(parser)


def _rate(arguments: argparse.Namespace) -> None:
    systems = {name: Path(folder) for name, folder in named_places(arguments.systems).items()}
    for name in arguments.watermarked:
        if name not in systems:
            raise UserError(f"--watermarked {name} is no system here.{did_you_mean(name, systems)}")

    from vlad.eval.benchmark.prompt_files import read_prompt_files
    from vlad.eval.human_study.rating_page import build_rating_page, check_host, serve_rating_page
    from vlad.eval.human_study.ratings import open_ratings
    from vlad.eval.human_study.results import study_results, study_table

    if not arguments.results:
        check_host(arguments.host)
    prompts = read_prompt_files(arguments.prompts)[: arguments.count]
    kind: Literal["pairs", "scores"] = "pairs" if arguments.pairs else "scores"
    ratings = open_ratings(
        kind, systems, prompts, arguments.out, arguments.seed, arguments.watermarked, must_exist=arguments.results
    )
    study = ratings.study
    left_out = len(prompts) - len(study.prompts)
    about = f"{len(study.prompts)} prompts, {len(systems)} systems; answers"
    without = f"{left_out} prompts are left out: not every system has an image of them.\n" if left_out else ""
    if arguments.results:
        print(study_table(study_results(ratings.answers(), sorted(systems), study.kind, arguments.seed)))
        print(f"{about} are in {arguments.out}\n{without}", end="")
        return
    page = build_rating_page(ratings)
    print(f"{about} go to {arguments.out}\n{without}", end="", flush=True)
    serve_rating_page(page, arguments.host, arguments.port)


RATE = Verb(
    "rate",
    "Serves a page on which people rate anonymised images; --results prints the table.",
    _add_rate_options,
    _rate,
    "vlad rate vlad=FOLDER sd=FOLDER --prompts FILE, then open the address; --results prints the table",
)
