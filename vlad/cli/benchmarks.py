"""`vlad benchmark`: measures parts of the program, a verb for each."""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from vlad.cli.common_options import add_config, add_engine
from vlad.cli.verb import Verb, VerbGroup
from vlad.utils.command_line import OptionParser, whole
from vlad.utils.paths import existing_file

MIN_COUNT = 100  # samples, prompts, layouts: fewer measure nothing


def _counts(default: int, of_what: str) -> Callable[[OptionParser], None]:
    """Adds --count."""

    def add(parser: OptionParser) -> None:
        parser.add_argument(
            "--count",
            type=whole(MIN_COUNT),
            default=default,
            metavar="N",
            help=f"{of_what}, at least {MIN_COUNT} (default: {default})",
        )

    return add


def _render(arguments: argparse.Namespace) -> None:
    from vlad.data.options import PosterOptions, SyntheticOptions
    from vlad.data.posters.render import render_poster
    from vlad.data.shards.writer import write_shards
    from vlad.data.signs import render_sign
    from vlad.profiling.measurement import report

    count, options = arguments.count, SyntheticOptions()
    for index in range(500):  # fills the caches of letters, as any set does in its first second
        render_sign(options, index)
    report("render", count, lambda: [render_sign(options, index) for index in range(count)])
    with tempfile.TemporaryDirectory() as folder:
        signs = (render_sign(options, index) for index in range(count))
        report("render and write shards", count, lambda: write_shards(signs, Path(folder)))
    posters = PosterOptions()
    for index in range(500):
        render_poster(posters, index)
    report(f"posters of {posters.size_pixels} pixels", count, lambda: [render_poster(posters, i) for i in range(count)])


RENDER = Verb(
    "render",
    "Signs and posters a second on one core; signs also with encoding and writing shards.",
    _counts(4000, "signs"),
    _render,
    "vlad benchmark render",
)


def _data(arguments: argparse.Namespace) -> None:
    from vlad.profiling.data_throughput import measure_loading

    measure_loading(arguments.count)


DATA = Verb(
    "data",
    "Samples a second from shards of 512 x 512 JPEG, and each as a share of the decode limit.",
    _counts(4000, "images"),
    _data,
    "vlad benchmark data",
)


def _add_text_options(parser: OptionParser) -> None:
    _counts(320, "prompts")(parser)
    parser.add_argument(
        "--lvlm", metavar="MODEL", help="a folder or hub id; without it a Qwen2.5-VL of 6 layers of 512"
    )


def _text(arguments: argparse.Namespace) -> None:
    from vlad.profiling.text_encoder_cost import compare_text_training

    compare_text_training(arguments.count, arguments.lvlm)


TEXT = Verb(
    "text",
    "Prompts a second and memory of one LVLM: frozen, with LoRA, and trained in full; a process each.",
    _add_text_options,
    _text,
    "vlad benchmark text",
)


def _refit(arguments: argparse.Namespace) -> None:
    from vlad.eval.refit_score import print_refit_scores

    print_refit_scores(arguments.count)


REFIT = Verb(
    "refit",
    "Lines that refit finds in multi-line layouts, rendered and disturbed as a sampler does it.",
    _counts(500, "layouts"),
    _refit,
    "vlad benchmark refit",
)


def _add_sample_options(parser: OptionParser) -> None:
    parser.add_argument("--run", help="a run or pipeline; without it random weights of configs/tiny.yaml's sizes")
    parser.add_argument("--steps", type=whole(1), default=10, help="solver steps of each stage (default: 10)")
    parser.add_argument("--batch-size", type=whole(1), default=16, help="images at once (default: 16)")
    parser.add_argument("--channels-last", action="store_true", help="measure stage two in that format, too")
    parser.add_argument("--compile", action="store_true", help="measure stage two compiled, too")


def _sample(arguments: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore", module=r"(transformers|diffusers).*")
    from vlad.inference.load_pipeline import load_pipeline
    from vlad.profiling.sampling_time import measure_sample, random_pipeline

    steps, batch = arguments.steps, arguments.batch_size
    asked = {"channels last": arguments.channels_last, "compiled": arguments.compile}
    pipeline = random_pipeline() if arguments.run is None else load_pipeline(arguments.run)
    figures = measure_sample(pipeline, steps, batch, faster=tuple(way for way, on in asked.items() if on))
    print(f"{batch} images at once, {steps} steps a stage, guidance with two evaluations a step, float32")
    for part, seconds in figures.seconds.items():
        print(f"  {part:58}{1000 * seconds:9.2f} ms an image")
    print(f"  stage two takes {figures.ratio:.3f} of its time; at the peak our own took {figures.peak / 1e6:.0f} MB")


SAMPLE = Verb(
    "sample",
    "Seconds an image by stage, and diffusers' StableDiffusionPipeline with a UNet of the same size beside them.",
    _add_sample_options,
    _sample,
    "vlad benchmark sample --run runs/tiny",
)


def _add_solver_options(parser: OptionParser) -> None:
    _counts(200, "images")(parser)
    parser.add_argument("--run", required=True, help="a run directory that vlad train made")
    add_engine(parser)


def _solvers(arguments: argparse.Namespace) -> None:
    path = existing_file(Path(arguments.run) / "config.yaml", "config", "name a run directory that vlad train made")
    from vlad.config.load import load_config
    from vlad.eval.held_out_words.solver_comparison import compare_solvers
    from vlad.inference.load_pipeline import load_pipeline

    compare_solvers(load_config(path), load_pipeline(arguments.run), arguments.count, arguments.engine)


SOLVERS = Verb(
    "solvers",
    "Held-out words read in images of few steps, by solver that fits the run; both stages take as many steps.",
    _add_solver_options,
    _solvers,
    "vlad benchmark solvers --run runs/tiny",
)


def _add_ocr_options(parser: OptionParser) -> None:
    _counts(1000, "images")(parser)
    add_engine(parser)


def _ocr(arguments: argparse.Namespace) -> None:
    from vlad.eval.benchmark.ocr_speed import measure_ocr_speed

    measure_ocr_speed(arguments.count, arguments.engine)


OCR = Verb(
    "ocr",
    "Images of 512 x 512 read a second, by one process and by one a core, and the memory they take.",
    _add_ocr_options,
    _ocr,
    "vlad benchmark ocr",
)


def _add_train_options(parser: OptionParser) -> None:
    add_config(parser)
    parser.add_argument("--steps", type=whole(1), default=20, help="steps a row (default: 20)")
    parser.add_argument("--warmup", type=whole(1), default=5, help="steps before them that do not count (default: 5)")
    parser.add_argument("--stage", default="refine", help="align, autoencoder, layout or refine (default)")
    parser.add_argument(
        "--switches",
        nargs="+",
        default=["plain", "attention", "channels_last", "compile", "cache", "batch"],
        help="rows of the table (default: plain attention channels_last compile cache batch)",
    )
    parser.add_argument("--cache", metavar="DIR", help="a cache of this config (vlad cache)")


def _train(arguments: argparse.Namespace) -> int:
    from vlad.config.checks import check_config
    from vlad.config.load import load_config

    check_config(load_config(arguments.config, arguments.overrides))  # before torch is loaded
    from vlad.profiling.switch_comparison import HEAD, ComparisonRow, StageCall, compare, text_row

    steps, warmup = arguments.steps, arguments.warmup
    shown: list[ComparisonRow] = []

    def show(row: ComparisonRow) -> None:
        if not shown:
            steps_measured = f"stage {arguments.stage}, {steps} steps after {warmup}"
            print(f"{arguments.config}, {steps_measured}; each row keeps the switches above it\n{HEAD}")
        shown.append(row)
        first = next((other for other in shown if other.figures is not None), None)
        print(text_row(row, first), flush=True)

    compared = StageCall(arguments.config, tuple(arguments.overrides), arguments.stage)
    compare(compared, arguments.switches, steps, warmup, arguments.cache, show)
    return 0 if any(row.figures is not None for row in shown) else 1


TRAIN = Verb(
    "train",
    "What each switch brings to the steps of a stage, one after the other.",
    _add_train_options,
    _train,
    "vlad benchmark train configs/tiny.yaml --stage layout",
)


def _plan(_: argparse.Namespace) -> None:
    from vlad.profiling.memory_plan_check import PLANNED, PLANNED_CHANNELS, planned_and_measured
    from vlad.profiling.stand_in import StandInOptions, save_stand_in

    options = StandInOptions(PLANNED_CHANNELS, layers_per_block=2)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "sd15"
        save_stand_in("sd15", model, options)
        print(f"{'':32} planned GB  measured GB  planned / measured")
        for what, overrides in PLANNED.items():
            for stage in ("layout", "refine"):
                planned, measured = planned_and_measured(model, stage, 256, overrides)
                row = f"{planned / 1e9:10.2f}  {measured / 1e9:11.2f}  {planned / measured:18.2f}"
                print(f"{f'{stage}, {what}':32} {row}", flush=True)


PLAN = Verb(
    "plan",
    "The planned and the measured peak of both stages, on the CPU, each measured in a process of its own.",
    lambda parser: None,
    _plan,
    "vlad benchmark plan",
)

BENCHMARK = VerbGroup(
    "benchmark",
    "Measures parts of the program; compare figures of one run only.",
    {"Verbs": (RENDER, DATA, TEXT, REFIT, SAMPLE, SOLVERS, OCR, TRAIN, PLAN)},
)
