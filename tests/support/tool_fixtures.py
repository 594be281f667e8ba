"""Calls the command lines as a user does, in the tests' own process."""

import sys
from collections.abc import Callable
from types import ModuleType

import pytest

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
