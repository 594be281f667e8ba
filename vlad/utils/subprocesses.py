"""Subprocesses: commands that run other commands of this project (the demo, the ablation).

Ctrl-C at a terminal reaches parent and children alike. The children save and end, which takes seconds: subprocess.run
would kill them meanwhile, here the parent waits. SIGTERM reaches the parent alone, which passes it on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


class ChildCommands:
    """Runs `vlad` commands, from any thread, inside a `with` block of the main thread.

    `interrupted` is True after a signal; from then on no new command is started.
    """

    def __init__(self, program: Sequence[str] = ("-m", "vlad")) -> None:
        self.program = program  # what Python is given before each command
        self.interrupted = False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> ChildCommands:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def run(self, *command: str, environment: Mapping[str, str] | None = None, log: Path | None = None) -> int:
        """Runs `vlad COMMAND` (a verb and its arguments) to its end and returns its exit code.

        Args:
            environment: additional environment variables.
            log: the file that its output is appended to; None prints it.
        """
        if self.interrupted:
            return 128 + signal.SIGINT
        line = [sys.executable, *self.program, *command]
        variables = {**os.environ, **(environment or {})}
        if log is None:
            return self._wait(subprocess.Popen(line, env=variables))
        with log.open("ab") as output:
            return self._wait(subprocess.Popen(line, env=variables, stdout=output, stderr=output))

    def stop(self) -> None:
        """Asks the running commands to save and end."""
        self.interrupted = True
        for process in tuple(self._running):
            process.terminate()

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        self._running.add(process)
        try:
            return process.wait()
        finally:
            self._running.discard(process)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        if number == signal.SIGTERM:
            self.stop()


def job_environment(job: int, jobs: int, cores: int, devices: Sequence[str]) -> dict[str, str]:
    """Environment variables that give one of several concurrent commands its share of the machine.

    Args:
        job: its number, from 0.
        jobs: how many commands run at once.
        cores: of the CPU, divided among the jobs.
        devices: names of the CUDA devices, dealt out in turn; with fewer devices than jobs, jobs share them.
    """
    environment = {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices[job::jobs] or [devices[job % len(devices)]])
    return environment


def visible_devices() -> list[str]:
    """The names of the CUDA devices that this process may use; empty without CUDA."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]
