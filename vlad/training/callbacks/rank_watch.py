"""Ends all ranks of a run at once when one is lost.

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

from vlad.utils.distributed import launch_rank
from vlad.utils.failures import is_lost_connection

POLL_SECONDS = 0.25
GRACE_SECONDS = 2.0


class RankWatch(L.Callback):
    """Watches the processes of a run from a thread: rank 0 those that it has started, the others their parent.

    `before_end` is called before the process ends. All ranks see `directory`: the first to notice reports.
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
        children = getattr(trainer.strategy.launcher, "procs", None) or []
        threading.Thread(target=self._watch, args=(os.getppid(), children), daemon=True).start()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.done.set()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.world_size > 1 and is_lost_connection(exception):
            # The thread, where it sees the lost process, knows which one it was.
            self.done.wait(GRACE_SECONDS)
            reason = " ".join(str(exception).split())[:160]
            self._end(f"another rank no longer answers rank {launch_rank()} ({reason})")
        self.done.set()

    def _watch(self, parent: int, children: list[Any]) -> None:
        while not self.done.wait(POLL_SECONDS):
            for number, child in enumerate(children, start=1):
                if child.poll() not in (None, 0):
                    self._end(f"rank {number} of this machine (process {child.pid}) has {_cause(child.returncode)}")
            if os.getppid() != parent:
                self._end(f"the process that started rank {launch_rank()} (process {parent}) is gone")

    def _end(self, what: str) -> None:
        """Reports what was lost, if no other rank has, and ends this process and those that it has started."""
        with self.ending:  # the thread and the trainer may both have noticed
            with contextlib.suppress(FileExistsError):
                self.token.touch(exist_ok=False)
                print(
                    f"\nerror: {what}; the run ends. That rank's own message, if any, stands above. The same command"
                    " resumes from the last checkpoint.",
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
