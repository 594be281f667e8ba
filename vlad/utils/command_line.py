"""What all command lines share: the option parser, exit codes, and how errors are printed."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from vlad.utils.errors import UserError, did_you_mean

OTHER_RANKS_WAIT_SECONDS = 3.0  # torchrun looks for ended processes ten times a second


# What follows an option is never taken for an override; elsewhere anything that looks like this is one.
OVERRIDE = re.compile(r"[A-Za-z_][\w.\-\[\]]*=")


class OptionParser(argparse.ArgumentParser):
    """Parses a command line: options in any order, `key=value` overrides anywhere between them.

    What is wrong raises a UserError of one sentence, without the list of all options.
    """

    takes_overrides = False

    def add_overrides(self, help_text: str, metavar: str = "key=value") -> None:
        """Collects `key=value` words, wherever they stand, in `overrides`."""
        self.takes_overrides = True
        self.add_argument("overrides", nargs="*", metavar=metavar, help=help_text)

    def parse(self, words: Sequence[str] | None = None) -> argparse.Namespace:
        """The options of a command line, of this process by default."""
        given = list(sys.argv[1:] if words is None else words)
        overrides, rest = self._split_overrides(given) if self.takes_overrides else ([], given)
        arguments, unknown = self.parse_known_intermixed_args(rest)
        if unknown:
            self._refuse(unknown[0], given)
        if self.takes_overrides:
            arguments.overrides = [*overrides, *arguments.overrides]
        return arguments

    def error(self, message: str) -> NoReturn:
        value = re.fullmatch(r"argument (\S+): (must be .*)", message)  # of `whole` and `number`
        if value is not None:
            raise UserError(f"{value[1].split('/')[0]} {value[2]}.")
        raise UserError(f"{message}; {self.prog} --help lists the options.")

    def _split_overrides(self, words: list[str]) -> tuple[list[str], list[str]]:
        """The overrides among the words, and the rest; what an option takes as its value is no override."""
        overrides: list[str] = []
        rest: list[str] = []
        owed: float = 0  # values that the option before still takes
        for number, word in enumerate(words):
            if word == "--":
                return overrides, rest + words[number:]
            is_value = owed >= 1
            if word.startswith("-") and len(word) > 1 and not is_value:
                owed = self._values_of(word)
            elif is_value:
                owed -= 1
            elif OVERRIDE.match(word) and not (owed and Path(word).exists()):
                overrides.append(word)
                continue
            rest.append(word)
        return overrides, rest

    def _values_of(self, word: str) -> float:
        """How many of the words after an option are its values for certain; 0.5 where some may be."""
        name, equals, _ = word.partition("=")
        known = self._option_string_actions
        matches = [name] if name in known else [other for other in known if other.startswith(name)]
        nargs = known[matches[0]].nargs if len(matches) == 1 else 0
        if equals or nargs == 0:
            return 0
        if nargs is None:
            return 1
        return nargs if isinstance(nargs, int) else 0.5

    def _refuse(self, word: str, words: list[str]) -> NoReturn:
        """Raises UserError for a word that nothing takes."""
        if not word.startswith("-"):
            raise UserError(f"{self.prog} takes no {word!r}; {self.prog} --help lists the options.")
        name, equals, value = word.partition("=")
        close = did_you_mean(name.lstrip("-"), [other.lstrip("-") for other in self._option_string_actions])
        if not close and self.takes_overrides and (key := name.lstrip("-").replace("-", "_")):
            if not equals:
                after = words[words.index(word) + 1 :][:1]
                value = after[0] if after and not after[0].startswith("-") else "VALUE"
            raise UserError(
                f"{self.prog} has no option {name}; an option of the config has no dashes: write"
                f" {shlex.quote(f'{key}={value}')}."
            )
        close = close.replace("'", "'--", 1)
        raise UserError(f"{self.prog} has no option {name}.{close or f' {self.prog} --help lists them.'}")


def whole(least: int = 0, most: int | None = None) -> Callable[[str], int]:
    """The type of an option that is a whole number in a range."""

    def parse(text: str) -> int:
        if re.fullmatch(r"[+-]?[0-9]{1,18}", text) and least <= int(text) and (most is None or int(text) <= most):
            return int(text)
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"must be a whole number {bounds}, not {text!r}")

    return parse


def given_command() -> str:
    """The command that started this process, to be given again."""
    script = Path(sys.argv[0])
    if script.name == "__main__.py":
        start = ["python", "-m", script.parent.name]
    else:
        start = ["vlad"] if script.name in ("vlad", "vlad.exe") else ["python", sys.argv[0]]
    return shlex.join([*start, *sys.argv[1:]])


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
