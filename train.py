"""Trains a run: python train.py configs/tiny.yaml [key=value ...]. The same as `vlad train`."""

from vlad.cli.train import TRAIN

if __name__ == "__main__":
    TRAIN.run_script()
