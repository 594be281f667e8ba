"""Models describe images, and what they say is held against the prompts:

python tools/describe.py vlad=FOLDER sd=FOLDER --prompts FILE --describer FOLDER [NAME=FOLDER ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlad.utils.command_line import run_command_line
from vlad.utils.errors import UserError


def named(values: list[str]) -> dict[str, str]:
    """NAME=PLACE pairs; a place alone is called after its last part."""
    found: dict[str, str] = {}
    for said in values:
        name, equals, place = said.partition("=")
        name, place = (name, place) if equals else (Path(said).name, said)
        if not name or not place or name in found:
            raise UserError(f"{said!r} names nothing, or the same twice; write NAME=PLACE for each.")
        found[name] = place
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Describes images and compares what is said with their prompts.")
    parser.add_argument("systems", nargs="+", metavar="NAME=FOLDER", help="images of each system, as evaluate.py's")
    parser.add_argument(
        "--prompts", type=Path, nargs="+", required=True, metavar="FILE", help="what they were drawn of"
    )
    parser.add_argument(
        "--describer", nargs="+", required=True, metavar="NAME=MODEL", help="image-text-to-text models of transformers"
    )
    parser.add_argument("--sentences", type=Path, metavar="DIR", help="a sentence encoder, for the similarity")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N prompts")
    parser.add_argument("--out", type=Path, default=Path("evaluations/descriptions"), metavar="DIR")
    arguments = parser.parse_args()
    if arguments.first is not None and arguments.first < 1:
        raise UserError(f"--first is {arguments.first}, and must be at least 1; leave it out for all prompts.")
    systems, describers = named(arguments.systems), named(arguments.describer)

    from vlad.eval.description_round_trip import evaluate_descriptions

    folders = {name: Path(folder) for name, folder in systems.items()}
    found = evaluate_descriptions(
        folders, arguments.prompts, describers, arguments.out, arguments.sentences, arguments.first
    )
    print(found.summary())
    return 1 if found.is_partial else 0


if __name__ == "__main__":
    run_command_line(main)
