"""Calls the command lines as a user does, in the tests' own process."""

import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from vlad.cli.verb import Verb
from vlad.utils.command_line import run_command_line

Call = Callable[..., tuple[int | str | None, str, str]]


@pytest.fixture
def call_tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """A tool's module, its file's name, arguments -> exit code, what it printed, what it complained of."""

    def call(module: ModuleType, name: str, *arguments: object) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_command_line(module.main)
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return call


@pytest.fixture
def call_verb(capsys: pytest.CaptureFixture[str]) -> Call:
    """A verb, arguments -> exit code, what it printed to standard output, and to standard error."""

    def call(verb: Verb, *arguments: object) -> tuple[int | str | None, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_command_line(lambda: verb([*map(str, arguments)], f"vlad {verb.name}"))
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return call
