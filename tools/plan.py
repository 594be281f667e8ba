"""Estimates a run's memory: python tools/plan.py CONFIG [key=value ...] [--gpu-gb 12]. The same as `vlad plan`."""

from vlad.cli.train import PLAN

if __name__ == "__main__":
    PLAN.run_script()
