"""Scores a run on held-out words, or anything that draws on a benchmark's prompts.

python tools/evaluate.py runs/tiny
python tools/evaluate.py runs/tiny_edit --editing --count 100
python tools/evaluate.py TARGET --protocol mario --prompts MARIOEval/TMDBEval500/TMDBEval500.txt
python tools/evaluate.py ENCODER --alignment --prompts data/benchmark/alignment.jsonl
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.eval.options import GENERATION_MODES, MODES_BY_NAME, MOST_WORDS, mode_name
from vlad.utils.command_line import run_command_line
from vlad.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from vlad.eval.benchmark.evaluator import Evaluation

# Options of one way of scoring, which another would pass over in silence.
OF_BENCHMARKS = (
    "out enlarge first images_per_prompt seed steps text_scale layout_scale no_refit use_layouts weights vision_encoder"
    " references pixels batch_size"
).split()
OF_ALIGNMENT = "out first images_per_prompt".split()
OF_WORDS = ("count", "ways", "editing")
PROTOCOL_NAMES = ("mario", "anytext", "cvtg", "longtext", "glyphcontrol", "textatlas", "all")


def evaluate_run(
    run: Path, count: int = 200, engine: str = "rapidocr", ways: Sequence[str] | None = None
) -> dict[str, Any]:
    """Scores a finished run in the ways named, or in all, each once: writes RUN/evaluation/, returns its metrics.

    Ways that are scored already, with as many words and the same engine, stay as they are, and join the metrics.
    """
    from tqdm import tqdm

    from vlad.config.load import load_config
    from vlad.data.signs import held_out_signs
    from vlad.eval.generators.generator import weights_digest
    from vlad.eval.held_out_words.spelling_score import modes_of, score_spelling, spelling_grid
    from vlad.inference.load_pipeline import load_pipeline
    from vlad.metrics.ocr import build_ocr_engine
    from vlad.pipeline.folders import pipeline_folder
    from vlad.training.callbacks.progress import write_metrics
    from vlad.utils.paths import existing_file, writable_directory

    out = run / "evaluation"
    metrics_file = out / "metrics.json"
    name = build_ocr_engine(engine).name
    weights = weights_digest(pipeline_folder(run))
    stored = stored_metrics(metrics_file, count, name, weights)
    scored: dict[str, Any] = stored.get("modes", {})
    # An older vlad always went all ways.
    if scored and (stored.get("all_ways", True) or (ways is not None and set(ways) <= set(scored))):
        return stored
    pipeline = load_pipeline(run)
    config = load_config(existing_file(run / "config.yaml", "config", "name a run directory that train.py made"))
    writable_directory(out, "the evaluation", needed_bytes=20_000_000)
    signs = held_out_signs(config.data.synthetic, count)
    possible = modes_of(pipeline)
    wanted = [mode for mode in possible if ways is None or mode in ways] or list(possible)
    metrics: dict[str, Any] = {
        "words": count,
        "engine": name,
        "weights": weights,
        "protocol": "image enlarged 4 times (bicubic), exact match of the whole reading, case and spaces ignored",
        "all_ways": {*wanted, *scored} >= set(possible),
        "modes": {},
    }
    for mode in possible:
        if mode in scored:
            metrics["modes"][mode] = scored[mode]
            continue
        if mode not in wanted:
            continue
        with tqdm(total=count, desc=f"scoring, {mode}", unit="image") as bar:

            def show(done: int, bar: Any = bar) -> None:
                bar.update(done - bar.n)

            score, images, rows = score_spelling(pipeline, signs, mode, engine, show)
        metrics["modes"][mode] = dataclasses.asdict(score)
        folder = out / mode_name(mode)
        writable_directory(folder, "images")
        for stale in folder.glob("[0-9][0-9][0-9][0-9].png"):  # of another count of words
            stale.unlink()
        for number, image in enumerate(images):
            image.save(folder / f"{number:04d}.png")
        spelling_grid(rows[:32], mode).save(out / f"{folder.name}.png")
    for mode in set(GENERATION_MODES) - set(metrics["modes"]):  # of an evaluation that gave way
        shutil.rmtree(out / mode_name(mode), ignore_errors=True)
        (out / f"{mode_name(mode)}.png").unlink(missing_ok=True)
    write_metrics(metrics_file, metrics)
    return metrics


def stored_metrics(metrics_file: Path, count: int, engine: str, weights: str) -> dict[str, Any]:
    """What was scored of these words, by this engine, with these weights; empty, and said, where it was of others."""
    if not metrics_file.is_file():
        return {}
    try:
        stored: dict[str, Any] = json.loads(metrics_file.read_text(encoding="utf-8"))
        # An older vlad measured no places, nor did it say of which weights its figures are.
        measures_all = all("places" in score for score in stored["modes"].values())
        was_of = f"{stored['words']} words by {stored['engine']}"
    except (ValueError, KeyError, TypeError, AttributeError):
        print(f"{metrics_file} is damaged; all is scored anew.")
        return {}
    is_of_these = stored.get("weights", weights) == weights
    if (stored["words"], stored["engine"]) == (count, engine) and measures_all and is_of_these:
        return stored
    other = "" if is_of_these else ", of other weights,"
    print(f"The figures of {was_of}{other} in {metrics_file} give way to new ones.")
    return {}


def evaluate_editing(run: Path, count: int, engine: str) -> dict[str, Any]:
    """Replaces the words of held-out signs: writes RUN/evaluation/editing* and returns the metrics."""
    from tqdm import tqdm

    from vlad.config.load import load_config
    from vlad.data.signs import held_out_signs
    from vlad.eval.held_out_words.editing_score import score_editing
    from vlad.inference.load_pipeline import load_pipeline
    from vlad.metrics.ocr import build_ocr_engine
    from vlad.pipeline.edits import check_can_edit
    from vlad.reports.image_grids import sample_grid
    from vlad.training.callbacks.progress import write_metrics
    from vlad.utils.paths import existing_file, writable_directory

    name = build_ocr_engine(engine).name
    pipeline = load_pipeline(run)
    check_can_edit(pipeline.config.edits)
    config = load_config(existing_file(run / "config.yaml", "config", "name a run directory that train.py made"))
    out = run / "evaluation"
    writable_directory(out / "editing", "the evaluation", needed_bytes=20_000_000)
    with tqdm(total=count, desc="scoring, editing", unit="image") as bar:
        signs = held_out_signs(config.data.synthetic, count)
        score, images, rows = score_editing(pipeline, signs, engine, lambda done: bar.update(done - bar.n))
    for number, image in enumerate(images):
        image.save(out / "editing" / f"{number:04d}.png")
    sample_grid(rows[:32], ("image", "mask, line", "edited"), cell_pixels=128, columns=4).save(out / "editing.png")
    metrics = {"engine": name, **dataclasses.asdict(score)}
    write_metrics(out / "editing.json", metrics)
    return metrics


def print_misread(score: dict[str, Any]) -> None:
    """The first words that came out as others."""
    if score["misread"]:
        shown = ", ".join(f"{wanted}>{read or '-'}" for wanted, read in score["misread"][:12])
        print(f"             misread: {shown}")


def print_editing(metrics: dict[str, Any], run: Path) -> None:
    """The scores of edits."""
    print(
        f"{metrics['words']} words of held-out signs replaced by others, read by {metrics['engine']}; masks cover"
        f" {metrics['mean_mask_share']:.1%} of an image"
    )
    print(
        f"editing      words {metrics['word_accuracy']:6.1%}  letters {metrics['letter_accuracy']:6.1%}"
        f"  {metrics['pixels_changed_outside']} pixels changed outside the masks"
        f"  {metrics['words'] / metrics['sampling_seconds']:.1f} images/s"
    )
    print_misread(metrics)
    print(f"Images and grid: {run / 'evaluation'}")


def evaluate_benchmark(target: Path, arguments: argparse.Namespace) -> tuple[Evaluation, Path]:
    """Scores images of a benchmark's prompts, drawn where they are missing; the evaluation and its folder."""
    from vlad.eval.benchmark.prompt_files import prompts_and_overrides, read_prompt_files
    from vlad.metrics.ocr import build_ocr_engine

    # A mistake in these answers at once: what scores them takes seconds to import.
    prompts, more = prompts_and_overrides(arguments.prompts)
    if not prompts:
        raise UserError("--prompts names no file; name one of your benchmark's.")
    read_prompt_files(prompts)
    build_ocr_engine(arguments.engine)

    from vlad.eval.benchmark.run_benchmark import run_benchmark
    from vlad.eval.options import BenchmarkOptions, GenerationOptions, OCROptions

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
        protocol=arguments.protocol,
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
    return run_benchmark(target, options, arguments.out, [*more, *arguments.overrides])


def evaluate_alignment(encoder: Path, arguments: argparse.Namespace) -> int:
    """Whether a run's own towers, or a CLIP, read prompts or bags of words: prints the table, writes it to OUT/."""
    from tqdm import tqdm

    from vlad.eval.alignment.alignment_prompts import read_entries

    entries = {entry.key: entry for entry in read_entries(*arguments.prompts)[: arguments.first]}

    from vlad.eval.alignment.alignment_scores import contrasts_of, table_of
    from vlad.eval.alignment.joint_encoders import joint_encoder
    from vlad.eval.benchmark.evaluator import write_json
    from vlad.eval.benchmark.image_sets import find_images
    from vlad.eval.benchmark.parallel_ocr import UNREADABLE, load_image
    from vlad.eval.benchmark.prompt_files import read_prompt_files
    from vlad.eval.benchmark.run_benchmark import default_out
    from vlad.utils.paths import writable_directory

    wanted = [prompt for prompt in read_prompt_files(arguments.prompts) if prompt.key in entries]
    if arguments.images is None:
        places = [(prompt.key, Path(prompt.reference)) for prompt in wanted if prompt.reference is not None]
        shown = "reference images"
    elif arguments.images.is_dir():
        found = find_images(arguments.images, wanted, arguments.images_per_prompt)
        places = [(image.wanted.key, image.path) for image in found if image.path is not None]
        shown = f"images of {arguments.images}"
    else:
        raise UserError(f"There is no folder of images at {arguments.images}.")
    places = [(key, path) for key, path in places if path.is_file()]
    missing = sorted(set(entries) - {key for key, _ in places})
    if not places:
        raise UserError("The prompt file's reference images are not there; name a folder with --images.")
    unreadable: list[str] = []

    def loaded(path: Path) -> np.ndarray | None:
        try:
            return load_image(path)
        except UNREADABLE:
            unreadable.append(str(path))
            return None

    model = joint_encoder(encoder)
    out = writable_directory(arguments.out or default_out(encoder, arguments.prompts), "the scores")
    with tqdm(total=len(places), desc="embedding", unit="image") as bar:
        pairs = [(entries[key], partial(loaded, path)) for key, path in places]
        scores = contrasts_of(model, pairs, lambda done: bar.update(done - bar.n))
    table = table_of(scores)
    about = f"{model.name} on {len(places) - len(unreadable)} {shown}, {', '.join(map(str, arguments.prompts))}"
    (out / "alignment.md").write_text(f"{about}\n\n{table}", encoding="utf-8")
    faults = {"missing": missing, "unreadable": unreadable}
    scored = {"encoder": str(encoder), "shown": shown, **faults, "scores": list(map(dataclasses.asdict, scores))}
    write_json(out / "alignment.json", scored)
    print(f"{about}\n\n{table}")
    print_faults(faults, len(entries), "prompts")
    print(f"alignment.md, alignment.json: {out}")
    return 1 if missing or unreadable else 0


def print_faults(faults: dict[str, list[str]], count: int, of_what: str) -> None:
    """A line for each kind of images that are not scored."""
    for what, names in faults.items():
        if names:
            more = f", and {len(names) - 5} more" if len(names) > 5 else ""
            named = "; ".join(name if len(name) <= 160 else f"{name[:157]}..." for name in names[:5])
            print(f"PARTIAL, {len(names)} of {count} {of_what} {what}: {named}{more}")


def print_evaluation(found: Evaluation, out: Path) -> None:
    """The table and where the rest is."""
    from vlad.eval.benchmark.html_report import text_table

    print(text_table(found))
    print(f"{len(found.scored)} images of {found.prompts} prompts; in brackets, intervals of 95 %")
    print(f"Read by {found.engine}, enlarged {found.enlarge}")
    for why in found.left_out.values():
        print(f"Left out: {why}")
    print_faults({"missing": found.missing, "unreadable": found.unreadable}, found.images, "images")
    print(f"Report, metrics.json, per_image.parquet: {out}")


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
    parser.add_argument("--protocol", choices=PROTOCOL_NAMES, help="default with --prompts: all")
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
        return evaluate_alignment(arguments.target, arguments)
    if arguments.images is not None:
        raise UserError("--images goes with --alignment; images to be read are the target itself.")
    if arguments.prompts is not None:
        arguments.protocol = arguments.protocol or "all"
        found, out = evaluate_benchmark(arguments.target, arguments)
        print_evaluation(found, out)
        return 1 if found.is_partial else 0
    if arguments.protocol is not None:
        raise UserError(f"--protocol {arguments.protocol} needs the benchmark's prompts: --prompts FILE.")
    if arguments.target.exists() and not (arguments.target / "config.yaml").is_file():
        raise UserError(f"{arguments.target} is no run, whose held-out words are known; name prompts: --prompts FILE.")
    if arguments.editing:
        print_editing(evaluate_editing(arguments.target, arguments.count, arguments.engine), arguments.target)
        return 0
    ways = None if arguments.ways is None else [MODES_BY_NAME[way] for way in arguments.ways]
    print_spelling(evaluate_run(arguments.target, arguments.count, arguments.engine, ways), arguments.target)
    return 0


def print_spelling(metrics: dict[str, Any], run: Path) -> None:
    """The scores on held-out words, the words with Wilson's 95 % interval."""
    from vlad.eval.benchmark.breakdown import wilson_interval

    print(f"{metrics['words']} held-out words, {metrics['engine']}, {metrics['protocol']}")
    for mode, score in metrics["modes"].items():
        colours = score["colours"]
        # Without a layout nobody knows where the letters are, and no colour is measured.
        seen = "".join(
            f"  {name} {colours[f'{name}s_right']:6.1%} (off by {colours[f'{name}_distance']:.0f})"
            for name in ("ground", "ink")
            if colours[f"{name}s_right"] is not None
        )
        if score["places"]["places_right"] is not None:
            # Of the images in which anything was read.
            seen += f"  place {score['places']['places_right']:6.1%} of {score['places']['places_named']}"
        low, high = wilson_interval(round(score["word_accuracy"] * score["words"]), score["words"])
        rate = score["words"] / score["sampling_seconds"]
        print(
            f"{mode:12} words {score['word_accuracy']:6.1%} ({low:.1%} to {high:.1%})"
            f"  letters {score['letter_accuracy']:6.1%}{seen}  {rate:.1f} images/s"
        )
        print_misread(score)
    print(f"Images and grids: {run / 'evaluation'}")


if __name__ == "__main__":
    run_command_line(main)
