"""Locks on directories."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vlad.utils.errors import UserError
from vlad.utils.locks import directory_lock

HOLDER = """
import os, sys, time
from pathlib import Path
from vlad.utils.locks import directory_lock
with directory_lock(Path(sys.argv[1]), "a run"):
    if sys.argv[2] == "alone" or os.fork() == 0:  # a loader's worker, which outlives its trainer, says that it is there
        print("held", flush=True)
    time.sleep(60)
"""


def refused(directory: Path) -> bool:
    try:
        with directory_lock(directory, "a run"):
            return False
    except UserError as error:
        assert str(error) == (
            f"Another process is at work on a run in {directory}; wait until it is done, or name another place."
        )
        return True


def test_one_process_at_a_time_and_no_file_left(tmp_path: Path) -> None:
    with directory_lock(tmp_path, "a run"):
        assert refused(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not refused(tmp_path)


@pytest.mark.parametrize("kind", ["alone", "forks"])
def test_a_killed_process_releases_its_lock_though_its_forked_worker_lives(tmp_path: Path, kind: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), kind], stdout=subprocess.PIPE, start_new_session=True
    ) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
            assert refused(tmp_path)
            holder.kill()
            holder.wait()
            assert not refused(tmp_path)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(holder.pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with directory_lock(tmp_path, "a run"):
        pass
    assert "cannot be locked (Function not implemented); let no other process work" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
