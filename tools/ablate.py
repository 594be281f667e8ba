"""Trains and scores ablations: python tools/ablate.py configs/tiny.yaml. The same as `vlad ablate`."""

from vlad.cli.studies import ABLATE

if __name__ == "__main__":
    ABLATE.run_script()
