"""What all command lines share: the option parser, exit codes, and how errors are printed."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from vlad.utils.errors import UserError, did_you_mean
from vlad.utils.foreign_text import guard_terminal
from vlad.utils.launcher import current_launch, forget_stray_ranks

UNUSABLE_NAMES = (errno.ENAMETOOLONG, errno.ELOOP)
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
        self.add_argument("overrides", nargs="*", default=[], metavar=metavar, help=help_text)

    def parse(self, words: Sequence[str] | None = None) -> argparse.Namespace:
        """The options of a command line, of this process by default."""
        overrides, rest = self._split_overrides(list(sys.argv[1:] if words is None else words))
        arguments, unknown = self.parse_known_intermixed_args(rest)
        if unknown:
            raise UserError(f"{self.prog} takes no {unknown[0]!r}; {self.prog} --help lists the options.")
        if self.takes_overrides:
            arguments.overrides = [*overrides, *arguments.overrides]
            _refuse_twice(arguments.overrides)
        return arguments

    def error(self, message: str) -> NoReturn:
        value = re.fullmatch(r"argument (\S+): (must be .*)", message)  # of `whole` and `number`
        if value is not None:
            raise UserError(f"{value[1].split('/')[0]} {value[2]}.")
        raise UserError(f"{message}; {self.prog} --help lists the options.")

    def _split_overrides(self, words: list[str]) -> tuple[list[str], list[str]]:
        """The overrides among the words, and the rest; a value of an option is no override.

        Raises UserError for an unknown option.
        """
        overrides: list[str] = []
        rest: list[str] = []
        owed = 0  # values that the option before takes for certain
        more = False  # whether it may take others after them
        for number, word in enumerate(words):
            if word == "--":
                return overrides, rest + words[number:]
            if owed:
                owed -= 1
            elif re.match(r"-[^0-9.]", word):
                nargs = self._values_of(word, words[number + 1 :])
                owed, more = (nargs, False) if isinstance(nargs, int) else (0, True)
            elif self.takes_overrides and OVERRIDE.match(word) and not (more and Path(word).exists()):
                overrides.append(word)
                continue
            rest.append(word)
        return overrides, rest

    def _values_of(self, word: str, after: list[str]) -> int | str:
        """How many of the words `after` an option are its values: a number, or argparse's ?, * or +."""
        name, equals, value = word.partition("=")
        known = self._option_string_actions
        matches = [name] if name in known else [other for other in known if other.startswith(name)]
        if len(matches) > 1 or (matches and equals):  # argparse names what is ambiguous
            return 0
        if matches:
            nargs = known[matches[0]].nargs
            return 1 if nargs is None else nargs
        close = did_you_mean(name.lstrip("-"), [other.lstrip("-") for other in known])
        if close or not self.takes_overrides:
            hint = close.replace("'", "'--", 1) or f" {self.prog} --help lists the options."
            raise UserError(f"{self.prog} has no option {name}.{hint}")
        if not equals:
            value = after[0] if after and not after[0].startswith("-") else "VALUE"
        override = shlex.quote(f"{name.lstrip('-').replace('-', '_')}={value}")
        raise UserError(f"{self.prog} has no option {name}; an option of the config has no dashes: write {override}.")


def _refuse_twice(overrides: Sequence[str]) -> None:
    """Raises UserError for an option that is given twice: a shell makes several words of one with braces in it."""
    given: dict[str, str] = {}
    for override in overrides:
        key = override.partition("=")[0]
        if key in given:
            raise UserError(
                f"{key} is given twice, {given[key]!r} and {override!r}; leave one out, or quote a value with braces:"
                f" '{key}=...{{000..009}}...'."
            )
        given[key] = override


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
    guard_terminal()
    try:
        forget_stray_ranks()
        sys.exit(main() or 0)
    except UserError as error:
        _wait_for_local_rank_zero()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in UNUSABLE_NAMES:
            raise
        # Path.is_file() and its like raise for these, so that any of the names that a user gives may end here.
        shown = str(error.filename)
        shown = shown if len(shown) <= 100 else f"{shown[:100]}..."
        print(f"error: {shown!r} is not a usable path ({error.strerror}); name another.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)


def _wait_for_local_rank_zero() -> None:
    """Lets local rank 0 print an error that all ranks share: the launcher ends the others while they wait here.

    An error that only another rank meets is printed after the wait.
    """
    with contextlib.suppress(UserError):  # the launch itself may be what is wrong
        if current_launch().local_rank:
            time.sleep(OTHER_RANKS_WAIT_SECONDS)
