"""A user's mistake becomes one sentence and exit code 2; everything else keeps its traceback."""

import errno
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from vlad.utils.errors import (
    OptionParser,
    UserError,
    claimed,
    did_you_mean,
    existing_file,
    run_command_line,
    sentence,
    writable_directory,
)


@pytest.mark.parametrize(
    ("reason", "said"), [("no", "no."), ("no.", "no."), ("Did you mean 'a'?", "Did you mean 'a'?"), (" a\n b ", "a b.")]
)
def test_an_error_inside_another_ends_with_one_mark(reason: str, said: str) -> None:
    assert sentence(ValueError(reason)) == said


def test_a_mistyped_option_is_one_sentence() -> None:
    parser = OptionParser(prog="draw.py")
    parser.add_argument("--steps", type=int)
    for given, said in ((["--steps", "x"], "invalid int value: 'x'"), (["--stops", "3"], "unrecognized arguments")):
        with pytest.raises(UserError, match=rf"{said}.*; draw\.py --help lists the options\.$"):
            parser.parse_args(given)


def test_a_writable_directory_is_made_and_left_empty(tmp_path: Path) -> None:
    path = writable_directory(str(tmp_path / "runs" / "mine"), "the run", needed_bytes=1)

    assert path == tmp_path / "runs" / "mine"
    assert list(path.iterdir()) == []
    assert writable_directory(path, "the run") == path  # again


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            UserError, match=rf"Cannot write the run to {path} \(.+\); name a directory you may write to"
        ):
            writable_directory(path, "the run")


def test_a_directory_that_takes_no_files_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(UserError, match=r"Cannot write images to .* \(Permission denied\)"):
        writable_directory(tmp_path, "images")


def test_too_little_room_is_told_with_both_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 3_000_000))

    with pytest.raises(UserError, match="has 3 MB free, but shards needs about 5 MB; make room"):
        writable_directory(tmp_path, "shards", needed_bytes=5_000_000)
    assert writable_directory(tmp_path, "shards", needed_bytes=3_000_000) == tmp_path


def test_an_existing_file_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").touch()
    assert existing_file(str(tmp_path / "prompts.txt"), "prompt file", "write one") == tmp_path / "prompts.txt"
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=rf"There is no prompt file at {path}; write one\."):
            existing_file(path, "prompt file", "write one")


def test_the_closest_word_is_suggested_and_no_far_one() -> None:
    assert did_you_mean("batchsize", ["batch_size", "name"]) == " Did you mean 'batch_size'?"
    assert did_you_mean("zzz", ["batch_size", "name"]) == ""
    assert did_you_mean("x", iter(())) == ""


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


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_told_of_and_worked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with claimed(tmp_path, "a run"):
        pass
    assert "cannot be locked (Function not implemented); let no other process work" in capsys.readouterr().err


@pytest.mark.parametrize(("local_rank", "waits"), [(None, []), ("0", []), ("3", [3.0])])
def test_other_processes_of_a_machine_let_the_first_speak(
    local_rank: str | None, waits: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("vlad.utils.errors.time.sleep", waited.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(SystemExit) as ended:
        run_command_line(raising(UserError("no such shards.")))
    assert (ended.value.code, waited) == (2, waits)
    assert capsys.readouterr().err == "error: no such shards.\n"
