"""Verbs that make examples for the others: demo, make-benchmark, make-posters, stand-in."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.cli.common_options import add_seed, side
from vlad.cli.verb import Verb
from vlad.utils.command_line import OptionParser
from vlad.utils.errors import UserError
from vlad.utils.paths import writable_directory

if TYPE_CHECKING:
    from vlad.utils.subprocesses import ChildCommands

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

POSTER_PROMPTS = (
    'a red poster with a white circle, at the top "JAZZ NIGHT" in large cream condensed letters, at the bottom'
    ' "SAT 8:00 PM" in white sans-serif letters',
    'a teal book cover, at the top "The Last Garden" in large cream serif letters, at the bottom "Anna & Tom" in'
    " yellow handwritten letters",
    'a yellow shop front on a navy background: at the top "COFFEE" in large navy slab serif letters, below it'
    ' "since 1924" in red script letters',
    'a green menu on a brown wooden board: at the top "Lunch" in large yellow script letters, then "Soup £6.50" in'
    ' white letters, below it "Bread £3" in white letters, below it "Tea £2.20" in white letters',
    'a blue street sign that says "Mill Lane" in large white sans-serif letters',
    'a purple ticket on a white background: at the top "ADMIT ONE" in large white stencil letters, below it "ROOM 12"'
    " in yellow condensed letters",
    'a black title card that reads "The Return" in large cream old-style serif letters in the middle',
    'a cream label on a teal wooden board, in the middle "Honey" in large orange brush script letters, then "€4.80" in'
    " navy letters",
    'an orange banner with a yellow flower, in the middle "50% OFF" in large white bold sans-serif letters, below it'
    ' "TODAY" in black letters',
)


def _step(children: ChildCommands, title: str, *command: str) -> float:
    """Runs a verb, its output shown; returns its seconds. A failure ends the demo."""
    shown = shlex.join(["vlad", *command])
    print(f"\n== {title}: {shown}", flush=True)
    started = time.monotonic()
    code = children.run(*command)
    if code == 2:
        raise UserError(f"the demo stopped at: {shown} (see above).")
    if code != 0:
        sys.exit(code)
    return time.monotonic() - started


def _sampling(model: str, prompts: Sequence[str], out: Path) -> tuple[str, ...]:
    """The verb that samples the prompts, which it reads from a file beside `out`."""
    file = out.with_name(f"{out.name}-prompts.txt")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(prompts) + "\n", encoding="utf-8")
    return "sample", model, "--prompts", str(file), "--out", str(out), "--seed", "1"


def _print_summary(run: Path, seconds: dict[str, float], samples: Path) -> None:
    """The closing table, from the files that the steps left behind."""
    from vlad.eval.ablation.ablation_table import read_scores

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
    noun, of_what = ("posters", "lines") if "posters" in evaluation else ("words", "words")
    columns = (of_what, "letters", "ground", "ink", "place")
    scores = read_scores(run)
    width = max(map(len, ("generated with", *scores)))
    print(f"\n{'generated with':{width}}{''.join(f'{name:>9}' for name in columns)}   right ({evaluation['engine']})")
    for mode, found in scores.items():
        shares = (found.words, found.letters, found.grounds, found.inks, found.places)
        print(f"{mode:{width}}{''.join(f'{share:9.1%}' if share is not None else '        -' for share in shares)}")
    times = ", ".join(f"{title} {value:.0f} s" for title, value in seconds.items())
    print(f"\n{evaluation[noun]} {noun} that training never renders; {evaluation['protocol']}.")
    print(f"This time: {times}; together {sum(seconds.values()) / 60:.1f} min{_peak_of_children()}.")
    print(f"Images:    {samples}, on one page: {samples / 'grids/grid.png'}")
    print(f"Scored:    {run / 'evaluation'} (grids of all modes)")
    print(f"Training:  {run / 'samples'}, {run / 'curves.png'}")


def _peak_of_children() -> str:
    if sys.platform == "win32":  # keeps no such figure
        return ""
    import resource

    kilobytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return f"; largest process {kilobytes * 1024 / 1e9:.1f} GB"


def _add_demo_options(parser: OptionParser) -> None:
    parser.add_argument(
        "--config", default="configs/tiny.yaml", help="as vlad train takes it (default: configs/tiny.yaml)"
    )


def _demo(arguments: argparse.Namespace) -> None:
    from vlad.config.load import load_config, released_model
    from vlad.reports.curves import draw_curves
    from vlad.utils.subprocesses import ChildCommands

    config = load_config(arguments.config)
    run = config.directory
    samples = run / "demo"
    model = released_model()
    seconds: dict[str, float] = {}
    with ChildCommands() as children:
        if model is not None:
            asked = _sampling(str(model), POSTER_PROMPTS, run / "demo-posters")
            seconds["posters"] = _step(children, "sample posters with the model of this repository", *asked)
            print(f"\nNine posters: {run / 'demo-posters' / 'grids' / 'grid.png'}", flush=True)
        seconds |= {
            "shards": _step(children, "render the signs", "shards", "render", arguments.config),
            "training": _step(children, "train all stages", "train", arguments.config),
        }
        if not (run / "refine" / "metrics.json").is_file():
            print("\nThe training was interrupted; the same command resumes it.")
            return
        seconds["samples"] = _step(children, "sample", *_sampling(str(run), PROMPTS, samples))
        seconds["scores"] = _step(children, "score", "evaluate", str(run))
    draw_curves({stage: run / stage for stage in STAGES}, run / "curves.png")
    _print_summary(run, seconds, samples)


DEMO = Verb(
    "demo",
    "Runs the whole method on the embedded default: shards, training, samples and scores.",
    _add_demo_options,
    _demo,
    "vlad demo",
    "Run it again to resume: finished steps are not repeated.",
)


def _add_benchmark_options(parser: OptionParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where it goes")
    parser.add_argument(
        "--split", choices=("test", "dev"), default="test", help="test: words that are held out of training (default)"
    )
    parser.add_argument("--count", type=int, default=50, metavar="N", help="prompts a subset (default: 50)")
    parser.add_argument("--size", type=side(), default=512, metavar="PIXELS", help="of the images (default: 512)")
    add_seed(parser, "of all prompts and images")


def _make_benchmark(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from vlad.eval.open_benchmark.alignment_subsets import ALIGNMENT_SUBSETS
    from vlad.eval.open_benchmark.make_benchmark import SUBSETS, OpenBenchmarkOptions, write_benchmark

    options = OpenBenchmarkOptions(arguments.seed, arguments.split, arguments.count, arguments.size)
    total = options.count * (len(SUBSETS) + len(ALIGNMENT_SUBSETS))
    writable_directory(arguments.out, "the benchmark", needed_bytes=total * options.size_pixels**2 // 8)
    with tqdm(total=total, desc="rendering", unit="image") as bar:
        record = write_benchmark(options, arguments.out, lambda done: bar.update(done - bar.n))
    print(f"{total} prompts, split {options.split}, seed {options.seed}, {options.size_pixels} pixels: {arguments.out}")
    print(
        f"sha256 of prompts and pixels: {record['sha256']}, of those of alignment.jsonl: {record['alignment_sha256']}"
    )
    print(f"vlad evaluate TARGET --prompts {shlex.quote(str(arguments.out / 'prompts.jsonl'))}")
    print(f"vlad evaluate RUN --alignment --prompts {shlex.quote(str(arguments.out / 'alignment.jsonl'))}")


MAKE_BENCHMARK = Verb(
    "make-benchmark",
    "Renders an open benchmark: prompts, layouts and reference images, the same on every machine.",
    _add_benchmark_options,
    _make_benchmark,
    "vlad make-benchmark --out data/benchmark",
)


def _add_poster_options(parser: OptionParser) -> None:
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    parser.add_argument("--count", type=int, default=480, metavar="N", help="posters (default: 480)")
    parser.add_argument(
        "--size", "--size-pixels", type=side(), default=64, metavar="PIXELS", help="of the images (default: 64)"
    )
    add_seed(parser, "which words, and where")


def _make_posters(arguments: argparse.Namespace) -> None:
    from vlad.data.poster_template import write_posters

    folder = arguments.folder
    write_posters(folder, arguments.count, arguments.size, arguments.seed)
    print(f"{arguments.count} posters are in {folder}; next: vlad shards make {folder} --out SHARDS")


MAKE_POSTERS = Verb(
    "make-posters",
    "Renders posters with captions into a folder: a stand-in for a custom dataset.",
    _add_poster_options,
    _make_posters,
    "vlad make-posters data/posters",
)


def _add_stand_in_options(parser: OptionParser) -> None:
    parser.add_argument("kind", choices=("sd15", "sd21", "sdxl"), help="which Stable Diffusion")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--real-size", action="store_true", help="as large as the real one (to plan its memory)")


def _stand_in(arguments: argparse.Namespace) -> None:
    out = Path(arguments.out)
    if out.exists():
        raise UserError(f"{out} is there already; name a new folder with --out.")

    from vlad.profiling.stand_in import REAL, save_stand_in

    writable_directory(out, "a stand-in", needed_bytes=30_000_000_000 if arguments.real_size else 10_000_000)
    save_stand_in(arguments.kind, out, REAL[arguments.kind] if arguments.real_size else None)
    print(f"A stand-in for {arguments.kind} in {out}; train from it with stable_diffusion.path={out}")


STAND_IN = Verb(
    "stand-in",
    "Writes a small Stable Diffusion of random weights, to try configs with.",
    _add_stand_in_options,
    _stand_in,
    "vlad stand-in sd15 --out models/sd15-stand-in",
)
