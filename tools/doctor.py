"""Checks machine, config and data: python tools/doctor.py CONFIG [key=value ...]. The same as `vlad doctor`."""

from vlad.cli.train import DOCTOR

if __name__ == "__main__":
    DOCTOR.run_script()
