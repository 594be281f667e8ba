"""Serves a human study: python tools/rate.py NAME=FOLDER ... --prompts FILE. The same as `vlad rate`."""

from vlad.cli.studies import RATE

if __name__ == "__main__":
    RATE.run_script()
