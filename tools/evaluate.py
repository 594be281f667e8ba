"""Scores a run on held-out words, or anything that draws on a benchmark's prompts.

python tools/evaluate.py runs/tiny
python tools/evaluate.py runs/tiny_edit --editing --count 100
python tools/evaluate.py TARGET --protocol mario --prompts MARIOEval/TMDBEval500/TMDBEval500.txt
python tools/evaluate.py ENCODER --alignment --prompts data/benchmark/alignment.jsonl
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlad.eval.options import (
    MODES_BY_NAME,
    MOST_WORDS,
    PROTOCOL_NAMES,
    BenchmarkOptions,
    GenerationOptions,
    OCROptions,
)
from vlad.utils.command_line import run_command_line
from vlad.utils.errors import UserError

# Options of one way of scoring, which another would pass over in silence.
OF_BENCHMARKS = (
    "out enlarge first images_per_prompt seed steps text_scale layout_scale no_refit use_layouts weights vision_encoder"
    " references pixels batch_size"
).split()
OF_ALIGNMENT = "out first images_per_prompt".split()
OF_WORDS = ("count", "ways", "editing")


def evaluate_benchmark(arguments: argparse.Namespace) -> int:
    """Scores images of a benchmark's prompts, generated where they are missing."""
    from vlad.eval.benchmark.prompt_files import prompts_and_overrides, read_prompt_files
    from vlad.metrics.ocr import build_ocr_engine

    # A mistake in these answers at once: what scores them takes seconds to import.
    prompts, more = prompts_and_overrides(arguments.prompts)
    if not prompts:
        raise UserError("--prompts names no file; name one of your benchmark's.")
    read_prompt_files(prompts)
    build_ocr_engine(arguments.engine)
    generation = GenerationOptions(
        arguments.steps,
        arguments.text_scale,
        arguments.layout_scale,
        False if arguments.no_refit else None,
        arguments.pixels,
        arguments.batch_size,
    )
    options = BenchmarkOptions(
        prompts=prompts,
        protocol=arguments.protocol or "all",
        ocr=OCROptions(arguments.engine, arguments.enlarge, arguments.workers),
        first=arguments.first,
        images_per_prompt=arguments.images_per_prompt,
        seed=arguments.seed,
        use_layouts=arguments.use_layouts,
        weights=arguments.weights,
        vision_encoders=tuple(arguments.vision_encoder),
        references=arguments.references,
        generation=generation,
    )

    from vlad.eval.benchmark.run_benchmark import run_benchmark
    from vlad.eval.benchmark.terminal_report import benchmark_summary

    found, out = run_benchmark(arguments.target, options, arguments.out, [*more, *arguments.overrides])
    print(benchmark_summary(found, out))
    return 1 if found.is_partial else 0


def evaluate_alignment(arguments: argparse.Namespace) -> int:
    """Whether a run's own towers, or a CLIP, read prompts or bags of words."""
    from vlad.eval.alignment.evaluate_alignment import evaluate_alignment

    (prompts,) = arguments.prompts
    found = evaluate_alignment(
        arguments.target, prompts, arguments.images, arguments.images_per_prompt, arguments.first, arguments.out
    )
    print(found.summary())
    return 1 if found.is_partial else 0


def refuse_idle_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Raises UserError for an option that would change nothing: its figures would be taken for what was asked for."""
    if arguments.alignment:
        idle, place = [*OF_WORDS, *(name for name in OF_BENCHMARKS if name not in OF_ALIGNMENT)], "with --alignment"
    elif arguments.prompts is not None:
        idle, place = list(OF_WORDS), "with --prompts"
    else:
        idle, place = OF_BENCHMARKS, "on held-out words; it goes with --prompts FILE"
    for name in idle:
        if getattr(arguments, name) != parser.get_default(name):
            raise UserError(f"--{name.replace('_', '-')} does nothing {place}; leave it out.")


def command_line() -> argparse.ArgumentParser:
    """All options; which of them go together, `refuse_idle_options` says."""
    parser = argparse.ArgumentParser(
        description="Scores spelling: a run on 200 held-out words, or with --prompts anything on a benchmark."
    )
    parser.add_argument("target", type=Path, help="a run, a pipeline, a folder of images, or an entry of configs/eval")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of an entry")
    parser.add_argument("--protocol", choices=(*PROTOCOL_NAMES, "all"), help="default with --prompts: all")
    parser.add_argument("--prompts", type=Path, nargs="+", metavar="FILE", help="in the benchmark's own format")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/evaluation/PROMPTS, or evaluations/...")
    parser.add_argument("--engine", "--ocr", default="rapidocr", help="rapidocr (default), tesseract or paddleocr")
    parser.add_argument("--enlarge", type=int, help="times; default: until the shorter side has 256 pixels")
    parser.add_argument("--workers", type=int, help="processes that read; default: one a core")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N prompts")
    parser.add_argument("--images-per-prompt", type=int, help="default: 1; of a folder: those that are there")
    parser.add_argument("--seed", type=int, default=0, help="of all images together (default: 0)")
    parser.add_argument("--steps", type=int, help="solver steps")
    parser.add_argument("--text-scale", type=float, help="guidance by the prompt")
    parser.add_argument("--layout-scale", type=float, help="guidance by the layout")
    parser.add_argument("--no-refit", action="store_true", help="hand the raw glyph map to stage two")
    parser.add_argument("--use-layouts", action="store_true", help="draw text where the prompt file's polygons are")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="where Inception and CLIP are looked for")
    parser.add_argument("--vision-encoder", type=Path, action="append", default=[], metavar="DIR", help="for distances")
    parser.add_argument(
        "--references", type=Path, metavar="DIR", help="real images for FID and KID; default: those the file names"
    )
    parser.add_argument("--pixels", type=int, help="side of the images of a pipeline that is not ours")
    parser.add_argument("--batch-size", type=int, help="images at once of a pipeline that is not ours (default: 4)")
    parser.add_argument("--count", type=int, default=200, help="without --prompts: how many words (default: 200)")
    parser.add_argument(
        "--ways", nargs="+", choices=MODES_BY_NAME, help="without --prompts: only these ways of drawing (default: all)"
    )
    parser.add_argument("--editing", action="store_true", help="replace the words of held-out signs, and read them")
    parser.add_argument(
        "--alignment", action="store_true", help="whether TARGET, a run or a CLIP's folder, reads more than words"
    )
    parser.add_argument(
        "--images", "--pictures", type=Path, metavar="DIR", help="with --alignment; default: the references"
    )
    return parser


def main() -> int:
    parser = command_line()
    arguments = parser.parse_intermixed_args()
    for name in ("count", "enlarge", "workers", "first", "images_per_prompt", "steps", "pixels", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1.")
    refuse_idle_options(parser, arguments)
    if arguments.count > MOST_WORDS:
        raise UserError(f"--count must be at most {MOST_WORDS}: all are drawn before the first is read.")
    if arguments.overrides and (arguments.prompts is None or arguments.alignment):
        said = f"{arguments.overrides[0]} changes an entry of configs/eval, and {arguments.target} is none"
        raise UserError(f"{said}; use the options (--help).")
    if arguments.alignment:
        if len(arguments.prompts or ()) != 1:
            raise UserError("--alignment takes one file of --prompts, the alignment.jsonl of tools/make_benchmark.py.")
        return evaluate_alignment(arguments)
    if arguments.images is not None:
        raise UserError("--images goes with --alignment; images to be read are the target itself.")
    if arguments.prompts is not None:
        return evaluate_benchmark(arguments)
    if arguments.protocol is not None:
        raise UserError(f"--protocol {arguments.protocol} needs the benchmark's prompts: --prompts FILE.")
    if arguments.target.exists() and not (arguments.target / "config.yaml").is_file():
        raise UserError(f"{arguments.target} is no run, whose held-out words are known; name prompts: --prompts FILE.")
    if arguments.editing:
        from vlad.eval.held_out_words.editing_evaluation import editing_summary, evaluate_editing

        print(editing_summary(evaluate_editing(arguments.target, arguments.count, arguments.engine), arguments.target))
        return 0
    from vlad.eval.held_out_words.spelling_evaluation import evaluate_spelling, spelling_summary

    modes = None if arguments.ways is None else [MODES_BY_NAME[name] for name in arguments.ways]
    metrics = evaluate_spelling(arguments.target, arguments.count, arguments.engine, modes)
    print(spelling_summary(metrics, arguments.target))
    return 0


if __name__ == "__main__":
    run_command_line(main)
