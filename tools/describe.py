"""Describes images: python tools/describe.py NAME=FOLDER ... --describer MODEL. The same as `vlad describe`."""

from vlad.cli.studies import DESCRIBE

if __name__ == "__main__":
    DESCRIBE.run_script()
