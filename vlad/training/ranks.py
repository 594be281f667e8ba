"""The ranks of a run: that a launcher has started as many as are asked for; and when one is lost, all end at once.

Left alone, the others would wait in a collective until its time-out, and each die with a traceback of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L

from vlad.utils.errors import UserError
from vlad.utils.failures import is_lost_connection

POLL_SECONDS = 0.25
GRACE_SECONDS = 2.0


def started_by() -> str | None:
    """What has started this process as one of several; None where the run starts them itself."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun"
    return "srun" if (_told("SLURM_STEP_NUM_TASKS") or 1) > 1 else None


def check_launch(nodes: int, devices: int) -> None:
    """Raises UserError where a launcher's variables do not agree with `nodes` machines of `devices` processes.

    Without a launcher several nodes would wait for each other for ever.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launcher, told = "torchrun", (_told("WORLD_SIZE"), _told("LOCAL_WORLD_SIZE"))
    elif (tasks := _told("SLURM_STEP_NUM_TASKS") or 1) > 1:
        # Each would train alone, and all would write into one directory. A batch script itself is no step of its job.
        launcher, told = "srun", (tasks, tasks // (_told("SLURM_STEP_NUM_NODES") or 1))
    elif nodes == 1:
        return
    elif "SLURM_PROCID" in os.environ and "SLURM_NTASKS" in os.environ:
        machines = _told("SLURM_NNODES") or nodes
        launcher, told = "srun", (_told("SLURM_NTASKS"), (_told("SLURM_NTASKS") or 0) // machines)
    else:
        raise UserError(
            f"trainer.nodes is {nodes}, but nothing has started processes on other machines; start the same command on"
            " every node with torchrun or srun (docs/training.md), or set trainer.nodes=1."
        )
    if told != (nodes * devices, devices):
        raise UserError(
            f"trainer.nodes x trainer.devices is {nodes} x {devices}, but {launcher} has started {told[0]} processes,"
            f" {told[1]} on this machine; make the two agree."
        )


def _told(name: str) -> int | None:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else None


class RankWatch(L.Callback):
    """Watches the processes of a run from a thread: rank 0 those that it has started, the others their parent.

    `before_end` is called before the process ends. `directory` is one that all ranks see: the first to notice speaks.
    """

    def __init__(self, directory: Path, before_end: Callable[[], None]) -> None:
        self.token = directory / ".rank-lost"
        self.before_end = before_end
        self.done = threading.Event()
        self.ending = threading.Lock()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size == 1:
            return
        if trainer.is_global_zero:
            self.token.unlink(missing_ok=True)
        self.rank = trainer.global_rank
        children = getattr(trainer.strategy.launcher, "procs", None) or []
        threading.Thread(target=self._watch, args=(os.getppid(), children), daemon=True).start()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.done.set()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.world_size > 1 and is_lost_connection(exception):
            # The thread, where it is one that sees the lost process, knows which it was.
            self.done.wait(GRACE_SECONDS)
            reason = " ".join(str(exception).split())[:160]
            self._end(f"another rank no longer answers rank {self.rank} ({reason})")
        self.done.set()

    def _watch(self, parent: int, children: list[Any]) -> None:
        while not self.done.wait(POLL_SECONDS):
            for number, child in enumerate(children, start=1):
                if child.poll() not in (None, 0):
                    self._end(f"rank {number} of this machine (process {child.pid}) has {_cause(child.returncode)}")
            if os.getppid() != parent:
                self._end(f"the process that started rank {self.rank} (process {parent}) is gone")

    def _end(self, what: str) -> None:
        """Says what was lost, if no other rank has, and ends this process and those that it has started."""
        with self.ending:  # the thread and the trainer may both have noticed
            with contextlib.suppress(FileExistsError):
                self.token.touch(exist_ok=False)
                print(
                    f"\nerror: {what}; the run ends. Its own words, if it had any, stand above. The same command goes"
                    " on from the last checkpoint.",
                    file=sys.stderr,
                    flush=True,
                )
            self.before_end()
            os._exit(1)


def _cause(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"been killed by {signal.Signals(-code).name}"
    return f"been killed by signal {-code}"
