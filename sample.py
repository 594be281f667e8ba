"""Samples images: python sample.py runs/tiny --prompt 'a blue sign that says "HOUSE"'. The same as `vlad sample`."""

from vlad.cli.sample import SAMPLE

if __name__ == "__main__":
    SAMPLE.run_script()
