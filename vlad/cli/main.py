"""The command `vlad`: all verbs, by what they are for."""

from __future__ import annotations

import sys

import vlad
from vlad.cli.sample import APP, EXPORT, SAMPLE
from vlad.cli.train import AVERAGE, CACHE, DOCTOR, PLAN, TRAIN
from vlad.cli.verb import VerbGroup
from vlad.utils.command_line import run_command_line

VLAD = VerbGroup(
    "vlad",
    "Text-to-image diffusion models that can spell: train, sample and score them.",
    {
        "Train": (TRAIN, PLAN, DOCTOR, CACHE, AVERAGE),
        "Sample": (SAMPLE, APP, EXPORT),
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
