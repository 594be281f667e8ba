"""Writes a stand-in for Stable Diffusion: python tools/stand_in.py sd15 --out FOLDER. The same as `vlad stand-in`."""

from vlad.cli.examples import STAND_IN

if __name__ == "__main__":
    STAND_IN.run_script()
