"""Renders the open benchmark: python tools/make_benchmark.py --out DIR. The same as `vlad make-benchmark`."""

from vlad.cli.examples import MAKE_BENCHMARK

if __name__ == "__main__":
    MAKE_BENCHMARK.run_script()
