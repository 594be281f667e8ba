"""Calls the command lines as a user does, in the tests' own process."""

from collections.abc import Callable

import pytest

from vlad.cli.verb import Verb
from vlad.utils.command_line import run_command_line

Call = Callable[..., tuple[int | str | None, str, str]]


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
