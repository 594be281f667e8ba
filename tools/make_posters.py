"""Renders posters of one template into a folder: python tools/make_posters.py data/posters

A stand-in for a custom dataset: NAME.png with its caption in NAME.txt, as make_shards.py takes them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlad.utils.command_line import run_command_line


def main() -> None:
    parser = argparse.ArgumentParser(description="Renders posters of one template, with captions, into a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=480, metavar="N", help="default 480")
    parser.add_argument("--size-pixels", type=int, default=64, metavar="N", help="of a side, default 64")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which words, and where (default 0)")
    arguments = parser.parse_args()

    from vlad.data.poster_template import write_posters

    write_posters(arguments.folder, arguments.count, arguments.size_pixels, arguments.seed)
    folder = arguments.folder
    print(f"{arguments.count} posters are in {folder}; next: python tools/make_shards.py {folder} --out SHARDS")


if __name__ == "__main__":
    run_command_line(main)
