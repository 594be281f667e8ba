"""A base before and after an adapter, as one image: python tools/compare_adapter.py runs/tiny --adapter runs/lora"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlad.utils.command_line import run_command_line
from vlad.utils.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Draws the captions of the images that a LoRA run has held out, without and with its adapter on"
        " the same seeds; measures how near both come to those images, and how they spell."
    )
    parser.add_argument("base", type=Path, help="the run or pipeline folder that the adapter was trained on")
    parser.add_argument(
        "--adapter", action="append", required=True, metavar="DIR[:WEIGHT]", help="a LoRA run; several add up"
    )
    parser.add_argument("--out", type=Path, default=Path("samples/before-after"), metavar="DIR")
    parser.add_argument(
        "--images-each", "--pictures-each", type=int, default=2, metavar="N", help="of each caption, default 2"
    )
    parser.add_argument(
        "--signs", type=int, default=100, metavar="N", help="plain signs: what is forgotten; 0 for none"
    )
    arguments = parser.parse_args()
    if arguments.images_each < 1 or arguments.signs < 0:
        raise UserError("--images-each must be at least 1, and --signs not negative.")

    from vlad.eval.adapter_comparison import compare, table

    found, page = compare(arguments.base, arguments.adapter, arguments.out, arguments.images_each, arguments.signs)
    print(table(found))
    print(f"Side by side: {page}; figures: {arguments.out / 'metrics.json'}")


if __name__ == "__main__":
    run_command_line(main)
