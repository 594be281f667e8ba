"""Verbs of the command line: each its options and the function that does the work; groups of verbs under one name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlad.utils.command_line import OptionParser, run_command_line
from vlad.utils.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Verb:
    """One of `vlad`'s commands; `vlad NAME` runs it, and so does a script of its own."""

    name: str
    # One sentence, for `vlad --help` and for the verb's own.
    about: str
    add_options: Callable[[OptionParser], None]
    # Imports what it needs; gives the exit code, None for 0.
    run: Callable[[argparse.Namespace], int | None]
    example: str
    # What --help says at its end beside the example.
    details: str | None = None

    def parser(self, prog: str | None = None) -> OptionParser:
        """The parser of its options; `prog` is what the user has called, the script's name by default."""
        epilog = f"Example: {self.example}" + (f". {self.details}" if self.details else "")
        parser = OptionParser(prog=prog, description=self.about, epilog=epilog)
        self.add_options(parser)
        return parser

    def __call__(self, words: Sequence[str] | None = None, prog: str | None = None) -> int:
        """Runs it with the words of a command line, this process's by default; gives the exit code."""
        return self.run(self.parser(prog).parse(words)) or 0

    def run_script(self) -> None:
        """Runs it as this process's script."""
        run_command_line(self)


@dataclass(frozen=True)
class VerbGroup:
    """Verbs under one name: the first word of the line picks one."""

    name: str
    about: str
    # By heading, as --help lists them.
    sections: Mapping[str, tuple[Verb | VerbGroup, ...]]

    def __call__(self, words: Sequence[str] | None = None, prog: str | None = None) -> int:
        """Runs the verb that the first word names with the others; gives the exit code."""
        words = list(sys.argv[1:] if words is None else words)
        prog = prog or Path(sys.argv[0]).name
        if not words or words[0] in ("-h", "--help"):
            print(self._help(prog))
            return 0
        verbs = {verb.name: verb for section in self.sections.values() for verb in section}
        if words[0] not in verbs:
            hint = did_you_mean(words[0], verbs) or f" {prog} --help lists the verbs."
            raise UserError(f"{prog} has no verb {words[0]!r}.{hint}")
        return verbs[words[0]](words[1:], f"{prog} {words[0]}")

    def _help(self, prog: str) -> str:
        shown = {heading: [(_usage(verb), verb.about) for verb in verbs] for heading, verbs in self.sections.items()}
        width = max(len(name) for rows in shown.values() for name, _ in rows) + 2
        lines = [f"usage: {prog} VERB ...", "", self.about]
        for heading, rows in shown.items():
            lines += ["", f"{heading}:", *(f"  {name:{width}}{about}" for name, about in rows)]
        return "\n".join([*lines, "", f"{prog} VERB --help lists the options of a verb."])

    def run_script(self) -> None:
        """Runs it as this process's script."""
        run_command_line(self)


def _usage(verb: Verb | VerbGroup) -> str:
    if isinstance(verb, Verb):
        return verb.name
    names = [inner.name for section in verb.sections.values() for inner in section]
    return f"{verb.name} {'|'.join(names)}" if len(names) <= 4 else f"{verb.name} ..."
