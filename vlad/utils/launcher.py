"""The launcher of this process, and its rank before a process group exists: torchrun, srun, or a run of ours.

Ranks lie in environment variables, which containers, batch scripts and shells hold, too, without having started
anything. They count only beside the mark of a launcher that did:

    torchrun   TORCHELASTIC_RUN_ID
    srun       SLURM_STEP_NUM_TASKS above 1: a batch script itself is no step of its job
    run        VLAD_RUN_PROCESS, the id of the run that has started this process as another of its ranks
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vlad.utils.errors import UserError

RUN_PROCESS = "VLAD_RUN_PROCESS"
# What libraries take for this process's rank, and where they look for the others.
RANK_VARIABLES = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID", "SLURM_LOCALID", "JSM_NAMESPACE_RANK"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)
# The number of processes, as other launchers and the controllers of clusters name it.
SIZE_VARIABLES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "JSM_NAMESPACE_SIZE")


@dataclass(frozen=True)
class Launch:
    """Who started this process, and as which of how many, where others count them.

    `launcher` None: it stands alone, whatever it starts itself.
    """

    launcher: str | None = None
    rank: int = 0
    local_rank: int = 0
    processes: int = 1
    local_processes: int = 1


def current_launch() -> Launch:
    """The launch that this process belongs to. Raises UserError where a launcher's variables are no numbers."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        ranks = _required("torchrun", "RANK"), _required("torchrun", "LOCAL_RANK")
        return Launch(
            "torchrun", *ranks, _required("torchrun", "WORLD_SIZE"), _required("torchrun", "LOCAL_WORLD_SIZE")
        )
    tasks = _number("SLURM_STEP_NUM_TASKS") or 1
    if tasks > 1:
        ranks = _required("srun", "SLURM_PROCID"), _required("srun", "SLURM_LOCALID")
        return Launch("srun", *ranks, tasks, tasks // (_number("SLURM_STEP_NUM_NODES") or 1))
    # Loaders and other helpers of the run are its children, too, and no ranks.
    if os.environ.get(RUN_PROCESS) == str(os.getppid()) and "LOCAL_RANK" in os.environ:
        local_rank = _required("run", "LOCAL_RANK")
        return Launch("run", local_rank, local_rank)
    return Launch()


def forget_stray_ranks() -> None:
    """Removes rank variables that no launcher of this process stands behind, before libraries believe them.

    Raises UserError where they name several processes: each would train alone.
    """
    if current_launch().launcher is not None:
        return
    for name in SIZE_VARIABLES:
        if (_number(name) or 1) > 1:
            raise UserError(
                f"{name}={os.environ[name]} names several processes, and neither torchrun nor srun started this one:"
                f" start the command with torchrun or srun (docs/training.md), or unset {name}."
            )
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)


@contextmanager
def run_process() -> Iterator[None]:
    """Inside the block this process may start others as ranks of its run, which know their launcher by it."""
    if current_launch().launcher is not None:
        yield
        return
    os.environ[RUN_PROCESS] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[RUN_PROCESS]


def check_launch(nodes: int, devices: int) -> None:
    """Raises UserError where the launch does not agree with `nodes` machines of `devices` processes.

    Without a launcher several nodes would wait for each other for ever.
    """
    launch = current_launch()
    if launch.launcher == "run":
        return
    if launch.launcher is None:
        if nodes > 1:
            raise UserError(
                f"trainer.nodes is {nodes}, but nothing has started processes on other machines; start the same command"
                " on every node with torchrun or srun (docs/training.md), or set trainer.nodes=1."
            )
        return
    if (launch.processes, launch.local_processes) != (nodes * devices, devices):
        raise UserError(
            f"trainer.nodes x trainer.devices is {nodes} x {devices}, but {launch.launcher} has started"
            f" {launch.processes} processes, {launch.local_processes} on this machine; make the two agree."
        )


def _number(name: str) -> int | None:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else None


def _required(launcher: str, name: str) -> int:
    value = _number(name)
    if value is None:
        given = f"is {os.environ[name]!r}" if name in os.environ else "is not set"
        raise UserError(
            f"{name} {given}, though other variables say that {launcher} has started this process; start it with"
            f" {launcher} again, or unset the launcher's variables."
        )
    return value
