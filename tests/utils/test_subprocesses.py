"""Commands that run other commands: signals, exit codes, and each one's share of the machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlad.utils.subprocesses import ChildCommands, job_environment

ROOT = Path(__file__).resolve().parents[2]
# Takes longer to save than subprocess.run leaves to a child after Ctrl-C.
CHILD = """
import signal, sys, time
from pathlib import Path

def save(number, frame):
    time.sleep(1.5)
    Path("saved").write_text(signal.Signals(number).name)
    sys.exit(0)

signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
Path("ready").touch()
time.sleep(60)
"""
PARENT = """
from vlad.utils.subprocesses import ChildCommands

with ChildCommands(['child.py']) as children:
    code = children.run()
    print(code, children.interrupted, children.run())
"""


@pytest.mark.parametrize("to_group", [True, False], ids=["ctrl-c", "sigterm to the parent alone"])
def test_a_signal_leaves_the_child_time_to_save(tmp_path: Path, to_group: bool) -> None:
    (tmp_path / "child.py").write_text(CHILD, encoding="utf-8")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(600):
        if (tmp_path / "ready").exists():
            break
        time.sleep(0.1)
    if to_group:
        os.killpg(parent.pid, signal.SIGINT)
    else:
        parent.send_signal(signal.SIGTERM)
    said, _ = parent.communicate(timeout=60)
    assert (tmp_path / "saved").read_text() == ("SIGINT" if to_group else "SIGTERM")
    # After a signal no command is started: the second child would have taken a minute.
    assert said.split() == ["0", "True", "130"]


def test_codes_variables_and_logs_of_a_command(tmp_path: Path) -> None:
    (tmp_path / "tell.py").write_text(
        "import os, sys\nprint(os.environ['WHAT'], *sys.argv[1:])\nsys.exit(3)\n", encoding="utf-8"
    )
    log = tmp_path / "log"
    before = signal.getsignal(signal.SIGINT)
    with ChildCommands([str(tmp_path / "tell.py")]) as children:
        assert children.run("a", environment={"WHAT": "one"}, log=log) == 3
        assert children.run("b", environment={"WHAT": "two"}, log=log) == 3
        assert not children.interrupted
    assert log.read_text() == "one a\ntwo b\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_concurrent_commands_share_cores_and_devices() -> None:
    assert job_environment(0, 3, 8, []) == {"OMP_NUM_THREADS": "2"}
    assert job_environment(1, 4, 2, []) == {"OMP_NUM_THREADS": "1"}
    dealt = [job_environment(job, 3, 16, list("0123"))["CUDA_VISIBLE_DEVICES"] for job in range(3)]
    assert dealt == ["0,3", "1", "2"]
    assert [job_environment(job, 3, 16, ["4", "7"])["CUDA_VISIBLE_DEVICES"] for job in range(3)] == ["4", "7", "4"]
