"""Makes the open benchmark: python tools/make_benchmark.py --out data/benchmark"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlad.utils.command_line import run_command_line


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Renders an open benchmark: prompts, layouts and reference images, the same on every machine."
    )
    parser.add_argument("--out", type=Path, required=True, help="where it goes")
    parser.add_argument(
        "--split", choices=("test", "dev"), default="test", help="test: words that training never draws"
    )
    parser.add_argument("--count", type=int, default=50, help="prompts a subset (default: 50)")
    parser.add_argument("--size", type=int, default=512, metavar="PIXELS", help="of the images (default: 512)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    arguments = parser.parse_args()

    from tqdm import tqdm

    from vlad.eval.open_benchmark.alignment_subsets import ALIGNMENT_SUBSETS
    from vlad.eval.open_benchmark.text_subsets import SUBSETS
    from vlad.eval.open_benchmark.write_benchmark import write_benchmark
    from vlad.eval.options import OpenBenchmarkOptions
    from vlad.utils.paths import writable_directory

    options = OpenBenchmarkOptions(arguments.seed, arguments.split, arguments.count, arguments.size)
    total = options.count * (len(SUBSETS) + len(ALIGNMENT_SUBSETS))
    writable_directory(arguments.out, "the benchmark", needed_bytes=total * options.size_pixels**2 // 8)
    with tqdm(total=total, desc="rendering", unit="image") as bar:
        record = write_benchmark(options, arguments.out, lambda done: bar.update(done - bar.n))
    print(f"{total} prompts, split {options.split}, seed {options.seed}, {options.size_pixels} pixels: {arguments.out}")
    print(
        f"sha256 of prompts and pixels: {record['sha256']}, of those of alignment.jsonl: {record['alignment_sha256']}"
    )
    print(f"python tools/evaluate.py TARGET --prompts {arguments.out / 'prompts.jsonl'}")
    print(f"python tools/evaluate.py RUN --alignment --prompts {arguments.out / 'alignment.jsonl'}")


if __name__ == "__main__":
    run_command_line(main)
