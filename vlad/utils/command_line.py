"""What all command lines share: the option parser, exit codes, and how errors are printed."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from vlad.utils.errors import UserError

OTHER_RANKS_WAIT_SECONDS = 3.0  # torchrun looks for ended processes ten times a second


class OptionParser(argparse.ArgumentParser):
    """A parser that raises a UserError of one sentence, without the list of all options."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the options.")


def run_command_line(main: Callable[[], int | None]) -> None:
    """Runs a command line: a UserError is printed and ends it with exit code 2, Ctrl-C with exit code 130."""
    # Threads that spin for long while they wait for each other make two programs on one CPU ten times slower, and
    # threads that sleep at once make one program a quarter slower (docs/LOG.md): so they spin for some microseconds.
    # Read when torch is loaded, which every command line does later than this.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        sys.exit(main() or 0)
    except UserError as error:
        _wait_for_local_rank_zero()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)


def _wait_for_local_rank_zero() -> None:
    """Lets local rank 0 print an error that all ranks share: the launcher ends the others while they wait here.

    An error that only another rank meets is printed after the wait.
    """
    local_rank = next((os.environ[name] for name in ("LOCAL_RANK", "SLURM_LOCALID") if name in os.environ), "0")
    if local_rank != "0":
        time.sleep(OTHER_RANKS_WAIT_SECONDS)
