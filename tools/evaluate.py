"""Scores a run, or anything on a benchmark: python tools/evaluate.py runs/tiny. The same as `vlad evaluate`."""

from vlad.cli.evaluate import EVALUATE

if __name__ == "__main__":
    EVALUATE.run_script()
