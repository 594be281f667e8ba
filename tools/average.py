"""Publishes another EMA: python tools/average.py RUN STAGE --width 0.1 --out DIR. The same as `vlad average`."""

from vlad.cli.train import AVERAGE

if __name__ == "__main__":
    AVERAGE.run_script()
