"""A UserError becomes one sentence and exit code 2; every other error keeps its traceback."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vlad.utils.command_line import OptionParser, run_command_line, whole
from vlad.utils.errors import UserError


def parser() -> OptionParser:
    made = OptionParser(prog="draw.py")
    made.add_argument("config")
    made.add_overrides("options")
    made.add_argument("--out")
    made.add_argument("--steps", type=whole(1, 9), default=2)
    made.add_argument("--ways", nargs="+")
    made.add_argument("--quick", action="store_true")
    return made


@pytest.mark.parametrize(
    "line",
    [
        "tiny a.b=1 c=2 --out x=y --ways u v --quick",
        "a.b=1 --out x=y tiny --quick c=2 --ways u v",
        "--quick a.b=1 --ways u v c=2 --out x=y tiny",
        "--ou x=y a.b=1 tiny --ways u v c=2 --qui",
        "--out=x=y a.b=1 tiny --ways u v --quick c=2",
    ],
)
def test_overrides_stand_anywhere(line: str) -> None:
    found = parser().parse(line.split())
    assert found.overrides == ["a.b=1", "c=2"]
    assert (found.config, found.out, found.ways, found.quick, found.steps) == ("tiny", "x=y", ["u", "v"], True, 2)


def test_an_existing_file_after_an_option_is_no_override(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").touch()
    assert parser().parse(["--ways", "u", "a=b", "c=d", "--quick", "tiny"]).ways == ["u", "a=b"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tiny --steps x", "--steps must be a whole number from 1 to 9, not 'x'."),
        ("tiny --steps 0", "--steps must be a whole number from 1 to 9, not '0'."),
        ("tiny --stops 3", "draw.py has no option --stops. Did you mean '--steps'?"),
        ("tiny --name x", "draw.py has no option --name; an option of the config has no dashes: write name=x."),
        (
            "--train.refine.learning-rate=1e-4",
            "draw.py has no option --train.refine.learning-rate; an option of the config has no dashes: write"
            " train.refine.learning_rate=1e-4.",
        ),
        ("tiny --name", "draw.py has no option --name; an option of the config has no dashes: write name=VALUE."),
        ("--out", "argument --out: expected one argument; draw.py --help lists the options."),
        ("--quick a=1", "the following arguments are required: config; draw.py --help lists the options."),
    ],
)
def test_a_mistake_is_one_sentence(line: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parser().parse(line.split())
    assert str(caught.value) == said


def test_without_overrides_a_superfluous_word_is_refused() -> None:
    with pytest.raises(UserError, match=r"^draw\.py takes no 'a=1'; draw\.py --help"):
        OptionParser(prog="draw.py").parse(["a=1"])


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
        (
            lambda: Path("long" * 100).is_file(),
            2,
            f"error: '{'long' * 25}...' is not a usable path (File name too long); name another.\n",
        ),
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
    if local_rank is not None:
        torchrun = {"TORCHELASTIC_RUN_ID": "x", "RANK": local_rank, "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}
        for name, value in {**torchrun, "LOCAL_RANK": local_rank}.items():
            monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        run_command_line(raising(UserError("no such shards.")))
    assert (ended.value.code, waited) == (2, waits)
    assert capsys.readouterr().err == "error: no such shards.\n"


def test_an_override_given_twice_is_refused() -> None:
    parser = OptionParser(prog="x")
    parser.add_overrides("options")
    assert parser.parse(["a=1", "b=1"]).overrides == ["a=1", "b=1"]
    with pytest.raises(UserError, match=r"a is given twice, 'a=0\.tar' and 'a=1\.tar'.*quote"):
        parser.parse(["a=0.tar", "a=1.tar"])
