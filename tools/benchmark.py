"""Measures parts of the program on this machine: python tools/benchmark.py render|read [--count N]"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from vlad.errors import UserError, run_command_line


def render(count: int) -> None:
    """Signs a second on one core: drawing alone, and drawing, encoding and writing shards."""
    from vlad.data.synthetic import SyntheticOptions, render_sign
    from vlad.data.writing import write_shards

    options = SyntheticOptions()
    for index in range(500):  # fills the caches of letters, as any set does in its first second
        render_sign(options, index)
    report("draw", count, lambda: [render_sign(options, index) for index in range(count)])
    with tempfile.TemporaryDirectory() as folder:
        signs = (render_sign(options, index) for index in range(count))
        report("draw and write shards", count, lambda: write_shards(signs, Path(folder)))


def read(count: int) -> None:
    """Samples a second on one core, from shards on disk: undecoded, decoded, and as batches with glyph maps."""
    from itertools import islice

    from vlad.data.shards import SampleStream, ShardBatches, StreamOptions, index_shards, read_members
    from vlad.data.synthetic import SyntheticOptions, render_sign
    from vlad.data.writing import write_shards

    with tempfile.TemporaryDirectory() as folder:
        write_shards((render_sign(SyntheticOptions(), index) for index in range(count)), Path(folder))
        index, options = index_shards(folder), StreamOptions(workers=0)
        report("tar members", count, lambda: [list(read_members(path)) for path in index.paths])
        report("decoded", count, lambda: list(islice(SampleStream(index, options, 0, 1, None).samples(), count)))
        batches = count // options.batch_size
        report("batches", batches * options.batch_size, lambda: list(ShardBatches(index, options, batches)))


def report(what: str, count: int, work: Callable[[], object]) -> None:
    """Runs the work once and prints its rate."""
    started = time.perf_counter()
    work()
    print(f"{what:24} {count / (time.perf_counter() - started):8.0f} samples/s")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures parts of the program; compare figures of one run only.")
    parser.add_argument("part", choices=("render", "read"))
    parser.add_argument("--count", type=int, default=4000)
    arguments = parser.parse_args()
    if arguments.count < 100:
        raise UserError("--count must be at least 100.")
    {"render": render, "read": read}[arguments.part](arguments.count)


if __name__ == "__main__":
    run_command_line(main)
