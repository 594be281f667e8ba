"""Measures parts of the program: tools/benchmark.py render|data|text|refit|sample|solvers|ocr|train|plan"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

from vlad.utils.command_line import run_command_line
from vlad.utils.errors import UserError
from vlad.utils.paths import existing_file

LEAST = 100  # samples, prompts, layouts: fewer measure nothing


def render(arguments: argparse.Namespace) -> None:
    """Signs a second on one core: drawing alone, and drawing, encoding and writing shards."""
    from vlad.data.options import SyntheticOptions
    from vlad.data.shards.writer import write_shards
    from vlad.data.signs import render_sign
    from vlad.profiling.measurement import report

    count, options = _count(arguments), SyntheticOptions()
    for index in range(500):  # fills the caches of letters, as any set does in its first second
        render_sign(options, index)
    report("draw", count, lambda: [render_sign(options, index) for index in range(count)])
    with tempfile.TemporaryDirectory() as folder:
        signs = (render_sign(options, index) for index in range(count))
        report("draw and write shards", count, lambda: write_shards(signs, Path(folder)))


def data(arguments: argparse.Namespace) -> None:
    """Samples a second from shards of 512 x 512 JPEG, and each as a share of the decode limit."""
    count = _count(arguments)
    from vlad.profiling.data_throughput import measure_loading

    measure_loading(count)


def text(arguments: argparse.Namespace) -> None:
    """Prompts a second and memory of one LVLM: frozen, with LoRA, and trained in full; a process each."""
    count = _count(arguments)
    from vlad.profiling.text_encoder_cost import compare_text_training

    compare_text_training(count, arguments.lvlm)


def refit(arguments: argparse.Namespace) -> None:
    """Lines that refit finds in generated multi-line layouts, drawn and disturbed as a sampler does it."""
    count = _count(arguments)
    from vlad.eval.refit_score import print_refit_scores

    print_refit_scores(count)


def sample(arguments: argparse.Namespace) -> None:
    """Seconds an image by stage, and diffusers' StableDiffusionPipeline with a UNet of the same size beside them."""
    steps, batch = arguments.steps, arguments.batch_size
    if min(steps, batch) < 1:
        raise UserError("--steps and --batch-size must be at least 1.")
    _quiet()
    from vlad.inference.load_pipeline import load_pipeline
    from vlad.profiling.sampling_time import measure_sample, random_pipeline

    asked = {"channels last": arguments.channels_last, "compiled": arguments.compile}
    pipeline = random_pipeline() if arguments.run is None else load_pipeline(arguments.run)
    figures = measure_sample(pipeline, steps, batch, faster=tuple(way for way, on in asked.items() if on))
    print(f"{batch} images at once, {steps} steps a stage, guidance with two evaluations a step, float32")
    for part, seconds in figures.seconds.items():
        print(f"  {part:58}{1000 * seconds:9.2f} ms an image")
    print(f"  stage two takes {figures.ratio:.3f} of its time; at the peak our own took {figures.peak / 1e6:.0f} MB")


def solvers(arguments: argparse.Namespace) -> None:
    """Held-out words read in images of few steps, by solver that fits the run; both stages take as many steps."""
    if arguments.run is None:
        raise UserError("solvers needs a trained run: --run runs/tiny.")
    count, told = _count(arguments), "name a run directory that train.py made"
    path = existing_file(Path(arguments.run) / "config.yaml", "config", told)
    from vlad.config.load import load_config
    from vlad.eval.held_out_words.solver_comparison import compare_solvers
    from vlad.inference.load_pipeline import load_pipeline

    compare_solvers(load_config(path), load_pipeline(arguments.run), count, arguments.engine)


def ocr(arguments: argparse.Namespace) -> None:
    """Images of 512 x 512 read a second, by one process and by one a core, and the memory they take."""
    count = _count(arguments)
    from vlad.eval.benchmark.ocr_speed import measure_ocr_speed

    measure_ocr_speed(count, arguments.engine)


def train(arguments: argparse.Namespace) -> None:
    """What each switch brings to the steps of a stage, one after the other."""
    call, steps, warmup = arguments.config, arguments.steps, arguments.warmup
    if min(steps, warmup) < 1:
        raise UserError("--steps and --warmup must be at least 1.")
    if not call or "=" in call[0]:
        raise UserError("train wants a config: python tools/benchmark.py train configs/tiny.yaml [key=value ...].")
    from vlad.profiling.switch_comparison import HEAD, Call, Row, compare, text_row

    shown: list[Row] = []

    def show(row: Row) -> None:
        shown.append(row)
        first = next((other for other in shown if other.figures is not None), None)
        print(text_row(row, first), flush=True)

    print(f"{call[0]}, stage {arguments.stage}, {steps} steps after {warmup}; each row keeps the switches above it")
    print(HEAD)
    compared = Call(call[0], tuple(call[1:]), arguments.stage)
    compare(compared, arguments.switches, steps, warmup, arguments.cache, show)


def plan(_: argparse.Namespace) -> None:
    """The planned and the measured peak of both stages, on the CPU, each measured in a process of its own."""
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


def _count(arguments: argparse.Namespace) -> int:
    if arguments.count < LEAST:
        raise UserError(f"--count must be at least {LEAST}.")
    return arguments.count


def _quiet() -> None:
    warnings.filterwarnings("ignore", module=r"(transformers|diffusers).*")


def build_parser() -> argparse.ArgumentParser:
    """A parser with a verb for each part, each with its own options."""
    parser = argparse.ArgumentParser(description="Measures parts of the program; compare figures of one run only.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(work: Any, count: int | None = None, counted: str = "") -> argparse.ArgumentParser:
        about = str(work.__doc__)
        made = verbs.add_parser(work.__name__, help=about, description=about)
        made.set_defaults(work=work)
        if count is not None:
            made.add_argument(
                "--count", type=int, default=count, help=f"{counted}, at least {LEAST} (default: {count})"
            )
        return made

    verb(render, 4000, "signs")
    verb(data, 4000, "images")
    of_text = verb(text, 320, "prompts")
    of_text.add_argument("--lvlm", help="a folder or hub id; without it a Qwen2.5-VL of 6 layers of 512")
    verb(refit, 500, "layouts")
    of_sample = verb(sample)
    of_sample.add_argument("--run", help="a run or pipeline; without it random weights of configs/tiny.yaml's sizes")
    of_sample.add_argument("--steps", type=int, default=10, help="solver steps of each stage (default: 10)")
    of_sample.add_argument("--batch-size", type=int, default=16, help="images at once (default: 16)")
    of_sample.add_argument("--channels-last", action="store_true", help="stage two once more in that format")
    of_sample.add_argument("--compile", action="store_true", help="stage two once more, compiled")
    of_solvers = verb(solvers, 200, "images")
    of_solvers.add_argument("--run", help="a run directory that train.py made")
    for reader in (of_solvers, verb(ocr, 1000, "images")):
        reader.add_argument("--engine", default="rapidocr", help="which OCR engine (default: rapidocr)")
    of_train = verb(train)
    of_train.add_argument("config", nargs="*", metavar="CONFIG key=value ...", help="what train.py would be given")
    of_train.add_argument("--steps", type=int, default=20, help="steps a row (default: 20)")
    of_train.add_argument("--warmup", type=int, default=5, help="steps before them that do not count (default: 5)")
    of_train.add_argument("--stage", default="refine", help="align, autoencoder, layout or refine (default)")
    of_train.add_argument(
        "--switches",
        nargs="+",
        default=["plain", "attention", "channels_last", "compile", "cache", "batch"],
        help="rows of the table (default: plain attention channels_last compile cache batch)",
    )
    of_train.add_argument("--cache", help="a cache of this config (tools/cache.py)")
    verb(plan)
    return parser


def main() -> None:
    parser = build_parser()
    arguments, rest = parser.parse_known_args()
    if arguments.verb == "train" and not any(word.startswith("-") for word in rest):
        arguments.config += rest  # config and overrides may stand between options
    elif rest:
        told = f"python tools/benchmark.py {arguments.verb} --help says what it takes"
        raise UserError(f"{arguments.verb} takes no {rest[0]}; {told}.")
    arguments.work(arguments)


if __name__ == "__main__":
    run_command_line(main)
