"""Measures parts of the program: python tools/benchmark.py render|data|text|refit|.... The same as `vlad benchmark`."""

from vlad.cli.benchmarks import BENCHMARK

if __name__ == "__main__":
    BENCHMARK.run_script()
