"""Exports a run with a model card: python tools/export.py runs/tiny --out exports/tiny. The same as `vlad export`."""

from vlad.cli.sample import EXPORT

if __name__ == "__main__":
    EXPORT.run_script()
