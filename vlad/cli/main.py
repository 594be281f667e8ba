"""The command `vlad`: all verbs, by what they are for."""

from __future__ import annotations

import sys

import vlad
from vlad.cli.benchmarks import BENCHMARK
from vlad.cli.evaluate import EVALUATE, RECONSTRUCT, TABLE1
from vlad.cli.examples import DEMO, MAKE_BENCHMARK, MAKE_POSTERS, STAND_IN
from vlad.cli.sample import APP, EXPORT, SAMPLE
from vlad.cli.shards import SHARDS
from vlad.cli.studies import ABLATE, COMPARE_ADAPTER, DESCRIBE, RATE
from vlad.cli.train import AVERAGE, CACHE, DOCTOR, OPTIONS, PLAN, TRAIN
from vlad.cli.verb import VerbGroup
from vlad.utils.command_line import run_command_line

VLAD = VerbGroup(
    "vlad",
    "Text-to-image diffusion models that can spell: train, sample and score them.",
    {
        "Data and training": (SHARDS, CACHE, OPTIONS, PLAN, DOCTOR, TRAIN, AVERAGE),
        "Images": (SAMPLE, APP, EXPORT),
        "Evaluation": (EVALUATE, TABLE1, RECONSTRUCT, ABLATE, RATE, DESCRIBE, COMPARE_ADAPTER, BENCHMARK),
        "Examples to try": (DEMO, MAKE_POSTERS, MAKE_BENCHMARK, STAND_IN),
    },
)


def main() -> int:
    """Runs the verb that this process was called with."""
    if sys.argv[1:] == ["--version"]:
        print(f"vlad {vlad.__version__}")
        return 0
    return VLAD(prog="vlad")


def run() -> None:
    """Entry point of the console command and of `python -m vlad`."""
    run_command_line(main)
