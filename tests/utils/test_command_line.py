"""A UserError becomes one sentence and exit code 2; every other error keeps its traceback."""

from collections.abc import Callable

import pytest

from vlad.utils.command_line import OptionParser, run_command_line
from vlad.utils.errors import UserError


def test_a_mistyped_option_is_one_sentence() -> None:
    parser = OptionParser(prog="draw.py")
    parser.add_argument("--steps", type=int)
    for given, said in ((["--steps", "x"], "invalid int value: 'x'"), (["--stops", "3"], "unrecognized arguments")):
        with pytest.raises(UserError, match=rf"{said}.*; draw\.py --help lists the options\.$"):
            parser.parse_args(given)


def raising(error: BaseException) -> Callable[[], int | None]:
    def main() -> int | None:
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "said"),
    [
        (lambda: None, 0, ""),
        (lambda: 0, 0, ""),
        (lambda: 3, 3, ""),
        (raising(UserError("There is no run at x; train one.")), 2, "error: There is no run at x; train one.\n"),
        (raising(KeyboardInterrupt()), 130, "Interrupted.\n"),
    ],
)
def test_exit_codes(main: Callable[[], int | None], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_command_line(main)

    assert caught.value.code == code
    assert capsys.readouterr() == ("", said)


def test_a_bug_keeps_its_traceback() -> None:
    # Also a ValueError: only what was meant for the user is shortened to a sentence.
    with pytest.raises(ValueError, match="a bug"):
        run_command_line(raising(ValueError("a bug")))


@pytest.mark.parametrize(("local_rank", "waits"), [(None, []), ("0", []), ("3", [3.0])])
def test_other_processes_of_a_machine_let_the_first_speak(
    local_rank: str | None, waits: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("vlad.utils.command_line.time.sleep", waited.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(SystemExit) as ended:
        run_command_line(raising(UserError("no such shards.")))
    assert (ended.value.code, waited) == (2, waits)
    assert capsys.readouterr().err == "error: no such shards.\n"
