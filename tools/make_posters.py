"""Draws posters of one template into a folder: python tools/make_posters.py data/posters

A stand-in for images of your own: NAME.png with its caption in NAME.txt, as make_shards.py takes them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlad.utils.command_line import run_command_line
from vlad.utils.errors import UserError
from vlad.utils.paths import writable_directory

MOST_POSTERS = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws posters of one template, with captions, into a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=480, metavar="N", help="default 480")
    parser.add_argument("--size-pixels", type=int, default=64, metavar="N", help="of a side, default 64")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which words, and where (default 0)")
    arguments = parser.parse_args()
    if not 1 <= arguments.count <= MOST_POSTERS or not 32 <= arguments.size_pixels <= 2048 or arguments.seed < 0:
        raise UserError(
            f"--count must be from 1 to {MOST_POSTERS}, --size-pixels from 32 to 2048, and --seed not negative."
        )
    if arguments.folder.is_dir() and any(arguments.folder.iterdir()):
        raise UserError(f"{arguments.folder} holds files already; name an empty or a new folder.")

    from PIL import Image

    from vlad.data.poster_template import render_poster

    folder = writable_directory(arguments.folder, "posters")
    for index in range(arguments.count):
        poster = render_poster(index, arguments.seed, arguments.size_pixels)
        Image.fromarray(poster.image).save(folder / f"{poster.key}.png")
        (folder / f"{poster.key}.txt").write_text(poster.caption + "\n", encoding="utf-8")
    print(f"{arguments.count} posters are in {folder}; next: python tools/make_shards.py {folder} --out SHARDS")


if __name__ == "__main__":
    run_command_line(main)
