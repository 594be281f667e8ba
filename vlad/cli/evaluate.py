"""Verbs that score: evaluate, table1, reconstruct."""

from __future__ import annotations

import argparse
from pathlib import Path

from vlad.cli.common_options import add_engine, add_prompts, add_seed, side
from vlad.cli.verb import Verb
from vlad.eval.options import (
    MODES_BY_NAME,
    MOST_WORDS,
    PROTOCOL_NAMES,
    BenchmarkOptions,
    GenerationOptions,
    OCROptions,
)
from vlad.utils.command_line import OptionParser, whole
from vlad.utils.errors import UserError
from vlad.utils.paths import checked_path

DEFAULT_WORDS, DEFAULT_POSTERS = 200, 300
# Options of one kind of evaluation, which another would ignore.
OF_BENCHMARKS = (
    "out enlarge images_per_prompt seed steps text_scale layout_scale no_refit use_layouts weights vision_encoder"
    " references size batch_size"
).split()
OF_ALIGNMENT = "out images_per_prompt".split()
OF_WORDS = ("modes", "editing")


def _add_evaluate_options(parser: OptionParser) -> None:
    parser.add_argument("target", type=Path, help="a run, a pipeline, a folder of images, or an entry of configs/eval")
    parser.add_overrides("settings of an entry")
    parser.add_argument("--protocol", choices=(*PROTOCOL_NAMES, "all"), help="default with --prompts: all")
    add_prompts(parser, required=False)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/evaluation/PROMPTS, or evaluations/...")
    add_engine(parser)
    parser.add_argument("--enlarge", type=whole(1), help="times; default: until the shorter side has 256 pixels")
    parser.add_argument("--workers", type=whole(1), help="processes that read; default: one a core")
    parser.add_argument("--images-per-prompt", type=whole(1), help="default: 1; of a folder: those that are there")
    add_seed(parser, "of all images together")
    parser.add_argument("--steps", type=whole(1), help="solver steps")
    parser.add_argument("--text-scale", type=float, help="guidance scale of the prompt")
    parser.add_argument("--layout-scale", type=float, help="guidance scale of the layout")
    parser.add_argument("--no-refit", action="store_true", help="hand the raw glyph map to stage two")
    parser.add_argument("--use-layouts", action="store_true", help="use the prompt file's layouts")
    parser.add_argument(
        "--weights",
        type=Path,
        default=Path("weights"),
        help="the folder of Inception's and CLIP's weights (default: weights)",
    )
    parser.add_argument("--vision-encoder", type=Path, action="append", default=[], metavar="DIR", help="for distances")
    parser.add_argument(
        "--references", type=Path, metavar="DIR", help="real images for FID and KID; default: those the file names"
    )
    parser.add_argument(
        "--size", "--pixels", type=side(), metavar="PIXELS", help="of square images of a pipeline that is not ours"
    )
    parser.add_argument(
        "--batch-size", type=whole(1), help="images at once of a pipeline that is not ours (default: 4)"
    )
    parser.add_argument(
        *("--modes", "--ways"),
        nargs="+",
        choices=MODES_BY_NAME,
        help="without --prompts: only these generation modes (default: all)",
    )
    parser.add_argument("--editing", action="store_true", help="replace the words of held-out signs, and read them")
    parser.add_argument(
        "--alignment",
        action="store_true",
        help="test whether TARGET (a run, or a CLIP's folder) understands prompts or only their words",
    )
    parser.add_argument(
        "--images", "--pictures", type=Path, metavar="DIR", help="with --alignment; default: the references"
    )


def _evaluate(arguments: argparse.Namespace) -> int:
    _refuse_idle_options(arguments)
    if arguments.overrides and (arguments.prompts is None or arguments.alignment):
        said = f"{arguments.overrides[0]} changes an entry of configs/eval, and {arguments.target} is none"
        raise UserError(f"{said}; use the options (--help).")
    if arguments.alignment:
        if len(arguments.prompts or ()) != 1:
            raise UserError("--alignment takes one file of --prompts, the alignment.jsonl of vlad make-benchmark.")
        return _evaluate_alignment(arguments)
    if arguments.images is not None:
        raise UserError("--images goes with --alignment; images to be read are the target itself.")
    if arguments.prompts is not None:
        return _evaluate_benchmark(arguments)
    if arguments.protocol is not None:
        raise UserError(f"--protocol {arguments.protocol} needs the benchmark's prompts: --prompts FILE.")
    if arguments.target.exists() and not (arguments.target / "config.yaml").is_file():
        raise UserError(f"{arguments.target} is no run, whose held-out words are known; name prompts: --prompts FILE.")
    if (arguments.count or 0) > MOST_WORDS:
        raise UserError(f"--count must be at most {MOST_WORDS}: all images are generated before the first is read.")
    if arguments.editing:
        from vlad.eval.held_out_words.editing_evaluation import editing_summary, evaluate_editing

        metrics = evaluate_editing(arguments.target, arguments.count or DEFAULT_WORDS, arguments.engine)
        print(editing_summary(metrics, arguments.target))
        return 0
    modes = None if arguments.modes is None else [MODES_BY_NAME[name] for name in arguments.modes]
    from vlad.config.load import load_config

    config = arguments.target / "config.yaml"
    if config.is_file() and load_config(config).data.posters is not None:
        from vlad.eval.held_out_words.poster_evaluation import evaluate_posters, poster_summary

        metrics = evaluate_posters(arguments.target, arguments.count or DEFAULT_POSTERS, arguments.engine, modes)
        print(poster_summary(metrics, arguments.target))
        return 0
    from vlad.eval.held_out_words.spelling_evaluation import evaluate_spelling, spelling_summary

    count = arguments.count or DEFAULT_WORDS
    print(spelling_summary(evaluate_spelling(arguments.target, count, arguments.engine, modes), arguments.target))
    return 0


def _refuse_idle_options(arguments: argparse.Namespace) -> None:
    """Raises UserError for an option that would change nothing: its figures would be taken for what was asked for."""
    if arguments.alignment:
        idle, place = [*OF_WORDS, *(name for name in OF_BENCHMARKS if name not in OF_ALIGNMENT)], "with --alignment"
    elif arguments.prompts is not None:
        idle, place = list(OF_WORDS), "with --prompts"
    else:
        idle, place = OF_BENCHMARKS, "on held-out words; it goes with --prompts FILE"
    parser = EVALUATE.parser()
    for name in idle:
        if getattr(arguments, name) != parser.get_default(name):
            raise UserError(f"--{name.replace('_', '-')} does nothing {place}; leave it out.")


def _evaluate_benchmark(arguments: argparse.Namespace) -> int:
    """Scores images of a benchmark's prompts, generated where they are missing."""
    from vlad.eval.benchmark.prompt_files import read_prompt_files
    from vlad.metrics.ocr import build_ocr_engine

    # A mistake in these answers at once: what scores them takes seconds to import.
    read_prompt_files(arguments.prompts)
    build_ocr_engine(arguments.engine)
    generation = GenerationOptions(
        arguments.steps,
        arguments.text_scale,
        arguments.layout_scale,
        False if arguments.no_refit else None,
        arguments.size,
        arguments.batch_size,
    )
    options = BenchmarkOptions(
        prompts=tuple(arguments.prompts),
        protocol=arguments.protocol or "all",
        ocr=OCROptions(arguments.engine, arguments.enlarge, arguments.workers),
        first=arguments.count,
        images_per_prompt=arguments.images_per_prompt,
        seed=arguments.seed,
        use_layouts=arguments.use_layouts,
        weights=arguments.weights,
        vision_encoders=tuple(arguments.vision_encoder),
        references=arguments.references,
        generation=generation,
    )

    from vlad.config.load import find_config
    from vlad.eval.benchmark.run_benchmark import run_benchmark
    from vlad.eval.benchmark.terminal_report import benchmark_summary

    is_entry = "eval" in arguments.target.parts and not arguments.target.is_dir()
    target = find_config(arguments.target) if is_entry else arguments.target
    found, out = run_benchmark(target, options, arguments.out, arguments.overrides)
    print(benchmark_summary(found, out))
    return 1 if found.is_partial else 0


def _evaluate_alignment(arguments: argparse.Namespace) -> int:
    """Whether a run's own towers, or a CLIP, read prompts or bags of words."""
    from vlad.eval.alignment.evaluate_alignment import evaluate_alignment

    (prompts,) = arguments.prompts
    found = evaluate_alignment(
        arguments.target, prompts, arguments.images, arguments.images_per_prompt, arguments.count, arguments.out
    )
    print(found.summary())
    return 1 if found.is_partial else 0


EVALUATE = Verb(
    "evaluate",
    "Scores a run on held-out words, or with --prompts anything on a benchmark.",
    _add_evaluate_options,
    _evaluate,
    "vlad evaluate runs/tiny",
    f"Without --prompts, --count says how many held-out words are scored (default: {DEFAULT_WORDS}), or posters of a"
    f" run that trains on them (default: {DEFAULT_POSTERS}).",
)


def _add_table1_options(parser: OptionParser) -> None:
    parser.add_overrides("such as vlad.path=runs/tiny", "ROW.key=value")
    add_prompts(parser, required=True)
    parser.add_argument("--entries", type=Path, metavar="DIR", help="default: the bundled configs/eval")
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="only these (default: all)")
    parser.add_argument("--out", default="evaluations/table1", metavar="DIR", help="default: evaluations/table1")
    add_engine(parser)
    parser.add_argument("--workers", type=whole(1), help="processes that read; default: one a core")
    parser.add_argument("--images-per-prompt", type=whole(1), default=4, help="as in MARIO-Eval: 4 (default)")
    add_seed(parser, "of all images together")
    parser.add_argument("--use-layouts", action="store_true", help="rows that take layouts get the prompt file's")
    parser.add_argument(
        "--weights",
        type=Path,
        default=Path("weights"),
        help="the folder of Inception's and CLIP's weights (default: weights)",
    )
    parser.add_argument(
        "--references", type=Path, metavar="DIR", help="real images for FID, such as MARIOEval with its sets' folders"
    )


def _table1(arguments: argparse.Namespace) -> int:
    if not arguments.out:
        raise UserError("--out names no folder; name one, such as evaluations/table1.")
    for name in ("entries", "out", "weights", "references"):
        if (place := getattr(arguments, name)) is not None:
            checked_path(place, f"--{name}")

    from vlad.config.load import bundled_configs
    from vlad.eval.benchmark.prompt_files import read_prompt_files

    read_prompt_files(arguments.prompts)  # a mistake in them answers at once, also where no row has its models

    from vlad.eval.table1 import evaluate_table1

    options = BenchmarkOptions(
        prompts=tuple(arguments.prompts),
        ocr=OCROptions(arguments.engine, workers=arguments.workers),
        first=arguments.count,
        images_per_prompt=arguments.images_per_prompt,
        seed=arguments.seed,
        use_layouts=arguments.use_layouts,
        weights=arguments.weights,
        references=arguments.references,
    )
    entries = arguments.entries or bundled_configs() / "eval"
    rows, text = evaluate_table1(entries, arguments.rows, arguments.overrides, options, Path(arguments.out))
    print(text)
    print(f"Table, and a report of each row: {arguments.out}")
    return 1 if any(row.faults for row in rows) else 0


TABLE1 = Verb(
    "table1",
    "Scores every row of configs/eval beside the published figures of Table I.",
    _add_table1_options,
    _table1,
    "vlad table1 --prompts MARIOEval/TMDBEval500/TMDBEval500.txt vlad.path=runs/NAME",
    "Run it again to resume: images that are generated and read are kept.",
)


def _add_reconstruct_options(parser: OptionParser) -> None:
    parser.add_argument("target", type=Path, help="a run, a pipeline, or a diffusers folder of an autoencoder")
    parser.add_argument(
        "--count", type=whole(1, MOST_WORDS), default=200, metavar="N", help="held-out posters (default: 200)"
    )
    parser.add_argument("--shards", metavar="SET", help="images with layouts of your own in place of posters")
    parser.add_argument(
        "--size", "--pixels", type=side(64), metavar="PIXELS", help="of the square images; default: the run's, or 128"
    )
    add_engine(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/evaluation, or evaluations/...")


def _reconstruct(arguments: argparse.Namespace) -> None:
    from vlad.eval.reconstruction import evaluate_reconstruction

    if arguments.out is not None:
        checked_path(arguments.out, "--out")
    result, folder = evaluate_reconstruction(
        arguments.target, arguments.count, arguments.engine, arguments.shards, arguments.size, arguments.out
    )
    print(result.table())
    print(f"Figures and grid at double size: {folder}/reconstruction.json, .png")


RECONSTRUCT = Verb(
    "reconstruct",
    "Encodes and decodes held-out posters, with noise on the latents, and reads what an autoencoder keeps.",
    _add_reconstruct_options,
    _reconstruct,
    "vlad reconstruct runs/poster",
    "Noise of 0, 0.1 and 0.2 (standard deviations of scaled latents); lines are compared without spaces and letter"
    " case.",
)
